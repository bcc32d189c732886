"""Frames → a volume on the grid, one frame at a time: the frames are never all in memory.

A frame is shrunk in its plane by two matrix products and then added to the slices of the grid that need it. Separable,
antialiased, float32 inside. Not here: the weights (oct.dicom.axis), decoding (oct.dicom.frames).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from oct.dicom.axis import AxisPlan, plan_axes
from oct.dicom.file import DicomFile, open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.geometry import ManifestSpacing
from oct.dicom.header import describe
from oct.dicom.retina import NOT_FOUND, find_retina, frames_to_look_at
from oct.volume import GREY, RETINA, Grid, Sampled, VolumeHeader
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.wsi.backends.source import read_source

Plane = npt.NDArray[np.float32]
CENTRE = (0.5, 0.5, 0.5)
NOT_ANCHORED = "depth has no known spacing: it is fitted to the grid, wherever the retina is"
BAND = 32  # voxels per block of a matrix product: a block needs only the samples near it


def read_volume(
    path: str,
    grid: Grid,
    crop: tuple[float, float, float] = CENTRE,
    manifest_spacing: ManifestSpacing | None = None,
    read: Callable[[str], bytes] = read_source,
) -> tuple[Sampled, VolumeHeader]:
    """The volume in the file or object at `path` on the grid, and its header. `read` gives the file's bytes.

    Frames that the crop leaves out are not decoded. For a grid at the retina, a few frames are decoded before, one at a
    time; where no retina is found, a note of the header says so. UnreadableUnit: what is wrong with the file,
    `missing`, or why it is not a volume. UnreachableUnit: its storage cannot be reached now.
    """
    file = open_dicom(_read_bytes(path, read), path)
    header = describe(file, manifest_spacing)
    if header.exclusion:
        raise UnreadableUnit(header.exclusion, path, "the file is not a volume")
    row, note = _look_for_retina(file, header) if grid.crop == RETINA else (None, "")
    axes = plan_axes(header, grid, crop, row)
    needed = axes[0].samples
    sampled = _fill(iterate_frames(file, header, needed.start, needed.stop), header, grid, axes)
    return sampled, replace(header, notes=(*header.notes, note)) if note else header


def _look_for_retina(file: DicomFile, header: VolumeHeader) -> tuple[float | None, str]:
    """The retina's row, and a note where there is none. An axis without a spacing is fitted to the grid as a whole."""
    if header.geometry.sources[1] == "assumed":
        return None, NOT_ANCHORED
    frames = (frame for i in frames_to_look_at(header.frames) for frame in iterate_frames(file, header, i, i + 1))
    row = find_retina(frames, float((1 << header.bits_stored) - 1))
    return row, "" if row is not None else NOT_FOUND


def put_on_grid(
    frames: Iterable[np.ndarray],
    header: VolumeHeader,
    grid: Grid,
    crop: tuple[float, float, float] = CENTRE,
    retina_row: float | None = None,
) -> Sampled:
    """All frames of a volume, in the order of its geometry, on the grid.

    frames: `[rows, columns]` unsigned each, greys of 0 … 2^bits_stored - 1, which become 0 … `GREY`. crop, retina_row:
    see `plan_axes`. On an axis of recorded spacing the volume keeps its size in mm.
    """
    axes = plan_axes(header, grid, crop, retina_row)
    needed = axes[0].samples
    return _fill(islice(frames, needed.start, needed.stop), header, grid, axes)


def _read_bytes(path: str, read: Callable[[str], bytes]) -> bytes:
    try:
        return read(path)
    except MissingFile as e:
        raise UnreadableUnit("missing", path, e.message) from e
    except UserError as e:
        raise UnreadableUnit("io", path, e.message) from e


def _fill(frames: Iterable[np.ndarray], header: VolumeHeader, grid: Grid, axes: tuple[AxisPlan, ...]) -> Sampled:
    """`frames` begins with the first frame that the plan of z needs."""
    z, y, x = axes
    shrink = _in_plane(y, x, (header.rows, header.columns))
    image = np.zeros(grid.shape, np.int16)
    into = image[z.start : z.end, y.start : y.end, x.start : x.end]
    _add_slices((shrink(frame) for frame in frames), z, GREY / ((1 << header.bits_stored) - 1), into)
    inside = np.array([[axis.start, axis.end] for axis in axes], np.int32)
    return Sampled(image, inside, (z.spacing_mm, y.spacing_mm, x.spacing_mm))


def _add_slices(planes: Iterable[Plane], z: AxisPlan, scale: float, into: npt.NDArray[np.int16]) -> None:
    """Weigh planes along z into the slices `into`.

    A slice between two planes is made when the second arrives. One of three planes or more adds them up as they come;
    there are at most a few such slices at a time, since their triangles are `2 · step` wide and `step` apart.
    """
    weights = z.weights * np.float32(scale)
    first, last = z.taps
    sums: dict[int, Plane] = {}
    previous, arrived, begin = None, 0, z.samples.start
    for j, plane in enumerate(planes, begin):
        for k in np.flatnonzero((first <= j) & (j <= last)).tolist():
            if last[k] - first[k] > 1:
                sums[k] = weights[k, j] * plane + sums.get(k, np.float32(0))
            if j < last[k]:
                continue
            value = sums.pop(k) if k in sums else weights[k, j] * plane
            if last[k] - first[k] == 1 and previous is not None:
                value += weights[k, j - 1] * previous
            into[k] = np.minimum(np.rint(value, out=value), GREY, out=value)
        previous, arrived = plane, arrived + 1
    assert arrived == z.samples.stop - begin, f"{arrived} frames, the plan needs {z.samples}"


def _in_plane(y: AxisPlan, x: AxisPlan, shape: tuple[int, int]) -> Callable[[np.ndarray], Plane]:
    """A function frame `[rows, columns]` → plane `[voxels of y, voxels of x]`, whichever product first is cheaper."""
    rows, columns = y.samples, x.samples
    down, across = _Bands(y.weights[:, rows]), _Bands(x.weights[:, columns])
    (m, n), (p, q) = down.shape, across.shape
    down_first = down.work * q + m * across.work <= n * across.work + down.work * p

    def shrink(frame: np.ndarray) -> Plane:
        assert frame.shape == shape, f"a frame is {frame.shape}, the header says {shape}"
        pixels = frame[rows, columns].astype(np.float32)
        return across.right(down.left(pixels)) if down_first else down.left(across.right(pixels))

    return shrink


class _Bands:
    """A banded matrix `[out, in]` as blocks of `BAND` rows, each with only the columns that it needs."""

    def __init__(self, weights: npt.NDArray[np.float32]) -> None:
        self.shape = weights.shape
        self.blocks: list[tuple[slice, slice, npt.NDArray[np.float32]]] = []
        for begin in range(0, len(weights), BAND):
            block = weights[begin : begin + BAND]
            used = np.flatnonzero(block.any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1)
            rows = slice(begin, begin + len(block))
            self.blocks.append((rows, columns, np.ascontiguousarray(block[:, columns])))

    @property
    def work(self) -> int:
        """Multiplications per column of what it is applied to."""
        return sum(block.size for _, _, block in self.blocks)

    def left(self, pixels: Plane) -> Plane:
        """This matrix times `pixels [in, n]`."""
        out = np.empty((self.shape[0], pixels.shape[1]), np.float32)
        for rows, columns, block in self.blocks:
            np.matmul(block, pixels[columns], out=out[rows])
        return out

    def right(self, pixels: Plane) -> Plane:
        """`pixels [n, in]` times the transpose of this matrix."""
        out = np.empty((len(pixels), self.shape[0]), np.float32)
        for rows, columns, block in self.blocks:
            out[:, rows] = pixels[:, columns] @ block.T
        return out
