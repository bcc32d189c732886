"""How one axis of a volume goes onto the grid: which voxels it fills, and the weights of its samples in each.

A recorded spacing is resampled to the grid's: what exceeds the grid is cropped, what is shorter is centred. An assumed
spacing never resamples by its value: such an axis is fitted to the whole grid. Not here: pixels (oct.dicom.resample).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oct.volume import AXES, Grid, VolumeHeader

NOTHING = 1e-6  # a smaller weight is a rounding error of places, and would need a frame more
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisPlan:
    """Weights of the samples in the grid's voxels from `start` on.

    weights: float32 `[voxels, samples]`, each row adds up to 1. spacing_mm: of the grid's voxels; NaN if not known.
    """

    start: int
    weights: npt.NDArray[np.float32]
    spacing_mm: float

    @property
    def end(self) -> int:
        """The last voxel filled, plus 1."""
        return self.start + len(self.weights)

    @property
    def taps(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The first and the last sample with a weight, per voxel."""
        used = self.weights != 0
        return used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)

    @property
    def samples(self) -> slice:
        """The samples that any voxel needs."""
        first, last = self.taps
        return slice(int(first.min()), int(last.max()) + 1)


def plan_axes(
    header: VolumeHeader, grid: Grid, crop: tuple[float, float, float], retina_row: float | None = None
) -> tuple[AxisPlan, ...]:
    """The plans of z, y and x. crop: 0 … 1 per axis, which part of what exceeds the grid is left out in front.
    retina_row: the row, from 0, that goes to the middle of the grid's depth, whatever `crop` says of that axis."""
    assert all(0 <= fraction <= 1 for fraction in crop), f"crop {crop} is not within 0 … 1"
    geometry = header.geometry
    sizes = (header.frames, header.rows, header.columns)
    plans = []
    for i in range(len(AXES)):
        cell = geometry.spacing_mm[i]
        places = np.arange(sizes[i], dtype=np.float64) * cell
        if i == 0 and geometry.offsets_mm is not None:
            places = np.array(geometry.offsets_mm, np.float64)
        is_assumed = geometry.sources[i] == "assumed"
        anchor = retina_row * cell if i == 1 and retina_row is not None else None
        step = None if is_assumed else grid.spacing_mm[i]
        plans.append(plan_axis(places, cell, grid.shape[i], step, crop[i], anchor))
    return tuple(plans)


def plan_axis(
    places: Floats, cell: float, size: int, spacing_mm: float | None, crop: float, anchor: float | None = None
) -> AxisPlan:
    """Put samples at `places` (increasing) onto `size` voxels of `spacing_mm`, or fit them if it is None.

    cell: what a single sample covers, in the unit of `places`. The middle of what the samples cover is the middle of
    the voxels they fill. anchor: the place that goes to the middle of the grid, on an
    axis that is not fitted; voxels may stay empty on one side then, while samples on the other side are left out.
    """
    edges = cell_edges(places, cell)
    extent = float(edges[-1] - edges[0])
    step = extent / size if spacing_mm is None else spacing_mm
    whole = max(1, math.floor(extent / step + 0.5))  # voxels that the axis fills, before the crop
    first = math.floor(crop * max(0, whole - size) + 0.5) - max(0, size - whole) // 2  # voxel 0 of the grid
    if anchor is not None and spacing_mm is not None:
        first = math.floor((anchor - edges[0] - extent / 2) / step + whole / 2 - size / 2 + 0.5)
    voxels = np.arange(max(0, first), min(whole, first + size))
    at = edges[0] + extent / 2 + (voxels + 0.5 - whole / 2) * step
    weights = triangle_weights(places, np.diff(edges), at, step)
    weights[weights < NOTHING] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return AxisPlan(max(0, -first), weights.astype(np.float32), math.nan if spacing_mm is None else spacing_mm)


def cell_edges(places: Floats, cell: float) -> Floats:
    """`[samples + 1]`: halfway between neighbours; at the ends, half the last gap beyond. One sample covers `cell`."""
    if len(places) == 1:
        return np.array([places[0] - cell / 2, places[0] + cell / 2])
    between = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - between[0]], between, [2 * places[-1] - between[-1]]])


def triangle_weights(places: Floats, cells: Floats, at: Floats, step: float) -> Floats:
    """`[voxels, samples]`: linear between neighbours where samples are sparser than voxels; else a triangle of half
    width `step`, weighted with what each sample covers (antialiased). Beyond the ends, the last sample."""
    if len(places) == 1:
        return np.ones((len(at), 1))
    left = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(places) - 2)
    gap = places[left + 1] - places[left]
    part = np.clip((at - places[left]) / gap, 0, 1)
    rows, linear = np.arange(len(at)), np.zeros((len(at), len(places)))
    linear[rows, left], linear[rows, left + 1] = 1 - part, part
    is_dense = gap < step * (1 - 1e-9)
    if not is_dense.any():
        return linear
    triangle = np.maximum(0, 1 - np.abs(places - at[is_dense, None]) / step) * cells
    linear[is_dense] = triangle / triangle.sum(axis=1, keepdims=True)
    return linear
