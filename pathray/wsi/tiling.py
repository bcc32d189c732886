"""From tissue to tiles: a regular grid over a slide at a stated spacing, kept where a tile holds enough tissue.

Pure arithmetic on a mask; only `tissue_of` reads. Coordinates are the tiles' upper left corners in level-0 pixels,
in raster order. Not here: a tile's pixels (pathray.wsi.regions), anchors for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.wsi.kept_masks import computed_mask
from pathray.wsi.reader import SlideReader, open_mask
from pathray.wsi.regions import rounded
from pathray.wsi.thumbnail import whole

CELLS_PER_TILE = 16  # samples of a given mask along one side of a tile
MAX_CELLS = 1 << 24  # of a mask in memory

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TileSpec:
    """Which tiles are cut: `size_px` pixels of `mpp` µm, neighbours sharing `overlap_px` of them.

    `edges`: tiles that reach beyond the slide's right and lower edge are kept as well (outside is white and no tissue).
    """

    size_px: int
    mpp: float
    overlap_px: int = 0
    min_tissue_fraction: float = 0.2
    edges: bool = False

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise UserError("a tile has at least one pixel", key="tile_px", found=self.size_px, expected=">= 1")
        if not 0 < self.mpp < float("inf"):
            raise UserError("not a spacing", key="mpp", found=self.mpp, expected="micrometres per pixel, > 0")
        if not 0 <= self.overlap_px < self.size_px:
            expected = f"0 to {self.size_px - 1}, less than a tile"
            raise UserError("tiles cannot overlap so far", key="overlap_px", found=self.overlap_px, expected=expected)
        if not 0 <= self.min_tissue_fraction <= 1:
            found = self.min_tissue_fraction
            raise UserError("not a fraction", key="min_tissue_fraction", found=found, expected="0 to 1")

    @property
    def size_um(self) -> float:
        return self.size_px * self.mpp

    def size_level0(self, mpp0: float) -> int:
        """Side of a tile in level-0 pixels."""
        return max(1, rounded(self.size_px * self.mpp / mpp0))

    def step_level0(self, mpp0: float) -> int:
        """Distance of neighbouring tiles in level-0 pixels: whole pixels, so that tiles without overlap just touch."""
        return max(1, rounded((self.size_px - self.overlap_px) * self.mpp / mpp0))


@dataclass(frozen=True)
class Tiles:
    """`coords` ``[N, 2]`` int64: upper left corners (x, y) in level-0 pixels, raster order; `tissue` ``[N]`` float32:
    the share of tissue in each; `size` a tile's side in level-0 pixels."""

    coords: Ints
    tissue: npt.NDArray[np.float32]
    size: int

    def __len__(self) -> int:
        return int(self.coords.shape[0])

    def centres(self) -> list[tuple[float, float]]:
        """What `read_regions` takes to read exactly these tiles."""
        return [(float(x), float(y)) for x, y in (self.coords + self.size // 2).tolist()]


def tile_grid(length: int, size: int, step: int, *, edges: bool = False) -> Ints:
    """Edges 0, step, 2·step … of the tiles that lie inside `length`, one that just fits included; with `edges` also of
    those that begin inside it and show something that no earlier tile does."""
    stop = max(1, length - size + step) if edges else length - size + 1
    return np.arange(0, max(0, stop), step, dtype=np.int64)


def tiles_of(mask: npt.NDArray[Any], width: int, height: int, mpp0: float, spec: TileSpec) -> Tiles:
    """The tiles of a slide of `width` × `height` level-0 pixels of `mpp0` µm.

    `mask` ``[h, w]`` (> 0 is tissue) is stretched over the whole slide; within one of its cells tissue counts as spread
    evenly, so a tile's share is exact area arithmetic whatever the mask's resolution.
    """
    size, step = spec.size_level0(mpp0), spec.step_level0(mpp0)
    left = tile_grid(width, size, step, edges=spec.edges)
    top = tile_grid(height, size, step, edges=spec.edges)
    share = tissue_share(mask, width, height, left, top, size)
    rows, columns = np.nonzero(share >= spec.min_tissue_fraction)  # raster order
    coords = np.stack([left[columns], top[rows]], axis=1)
    return Tiles(coords, share[rows, columns].astype(np.float32), size)


def tissue_share(mask: npt.NDArray[Any], width: int, height: int, left: Ints, top: Ints, size: int) -> Floats:
    """Tissue share ``[len(top), len(left)]`` of every square of side `size` with these edges; outside is none."""
    h, w = mask.shape
    integral = np.zeros((h + 1, w + 1), np.int64 if mask.size > 1 << 31 else np.int32)
    np.cumsum(np.cumsum(mask > 0, axis=0, dtype=integral.dtype), axis=1, out=integral[1:, 1:])
    columns = _at(integral, (left + size) * (w / width), 1) - _at(integral, left * (w / width), 1)
    cells = _at(columns, (top + size) * (h / height), 0) - _at(columns, top * (h / height), 0)
    area = float(size) ** 2 * (w / width) * (h / height)
    share: Floats = np.round(np.clip(cells / area, 0.0, 1.0), 9)  # so that all tissue is 1, not 1 − 1e-16
    return share


def _at(integral: npt.NDArray[Any], where: Floats, axis: int) -> Floats:
    """An integral along one axis at fractional cells: linear between the cells' edges, which even cells make exact."""
    where = np.clip(where, 0.0, integral.shape[axis] - 1.0)
    cell = np.minimum(where.astype(np.int64), integral.shape[axis] - 2)
    part = (where - cell)[:, None] if axis == 0 else where - cell
    low, high = np.take(integral, cell, axis), np.take(integral, cell + 1, axis)
    between: Floats = low * (1.0 - part) + high * part
    return between


def tissue_of(reader: SlideReader, mpp0: float, mask_path: str, spec: TileSpec) -> npt.NDArray[np.uint8]:
    """The slide's tissue ``[h, w]`` fine enough for `spec`: its mask file, or one computed when there is none.

    Given masks are sampled at their coarsest level that is fine enough, in strips: a mask at full resolution never
    stands in memory. Raises what opening and reading slides and masks raises.
    """
    if not mask_path:
        return (computed_mask(reader, mpp0) > 0).astype(np.uint8)
    mask = open_mask(mask_path)
    try:
        cells = _cells(reader.level_shapes[0], mask.level_shapes[0], spec.size_level0(mpp0))
        return (whole(mask, *cells) > 0).astype(np.uint8)
    finally:
        mask.close()


def _cells(slide: tuple[int, int], mask: tuple[int, int], size: int) -> tuple[int, int]:
    """Columns and rows to sample a mask at: as many as tiles need, at most as many as it and the memory have."""
    scale = min(CELLS_PER_TILE / size, (MAX_CELLS / (slide[0] * slide[1])) ** 0.5)
    width, height = (max(1, min(m, round(s * scale))) for s, m in zip(slide, mask, strict=True))
    return width, height
