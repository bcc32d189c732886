"""Tiles of a slide: a regular grid at a given spacing, keeping the tiles that contain enough tissue.

Pure arithmetic on a mask; only `tissue_of` reads files. Coordinates are the tiles' upper left corners in level-0
pixels, in raster order. Not here: a tile's pixels (pathray.wsi.regions), anchors for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.wsi.kept_masks import cached_tissue_mask
from pathray.wsi.reader import SlideReader, open_mask
from pathray.wsi.regions import round_half_up
from pathray.wsi.thumbnail import whole

CELLS_PER_TILE = 16  # mask samples along one side of a tile
MAX_CELLS = 1 << 24  # largest mask in memory

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TileSpec:
    """The tiling: tiles of `size_px` pixels at `mpp`; neighbours overlap by `overlap_px`.

    `edges`: also keep tiles that extend beyond the slide's right and lower edges (outside is white, without tissue).
    """

    size_px: int
    mpp: float
    overlap_px: int = 0
    min_tissue_fraction: float = 0.2
    edges: bool = False

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise UserError("tile_px must be >= 1", key="tile_px", found=self.size_px, expected=">= 1")
        if not 0 < self.mpp < float("inf"):
            raise UserError("mpp must be > 0", key="mpp", found=self.mpp, expected="micrometres per pixel, > 0")
        if not 0 <= self.overlap_px < self.size_px:
            expected = f"0 to {self.size_px - 1}, less than a tile"
            raise UserError(
                "the overlap must be smaller than a tile", key="overlap_px", found=self.overlap_px, expected=expected
            )
        if not 0 <= self.min_tissue_fraction <= 1:
            found = self.min_tissue_fraction
            message = "min_tissue_fraction must be between 0 and 1"
            raise UserError(message, key="min_tissue_fraction", found=found, expected="0 to 1")

    @property
    def size_um(self) -> float:
        return self.size_px * self.mpp

    def size_level0(self, mpp0: float) -> int:
        """Side of a tile in level-0 pixels."""
        return max(1, round_half_up(self.size_px * self.mpp / mpp0))

    def step_level0(self, mpp0: float) -> int:
        """Distance between neighbouring tiles in whole level-0 pixels, so that tiles without overlap just touch."""
        return max(1, round_half_up((self.size_px - self.overlap_px) * self.mpp / mpp0))


@dataclass(frozen=True)
class Tiles:
    """`coords` ``[N, 2]`` int64 are the upper left corners (x, y) in level-0 pixels, in raster order. `tissue` ``[N]``
    float32 is the tissue fraction of each tile, `size` a tile's side in level-0 pixels."""

    coords: Ints
    tissue: npt.NDArray[np.float32]
    size: int

    def __len__(self) -> int:
        return int(self.coords.shape[0])

    def centres(self) -> list[tuple[float, float]]:
        """The tiles' centres, as `read_regions` takes them."""
        return [(float(x), float(y)) for x, y in (self.coords + self.size // 2).tolist()]


def tile_grid(length: int, size: int, step: int, *, edges: bool = False) -> Ints:
    """Start positions 0, step, 2·step … of the tiles that fit into `length`. With `edges`, also of the tiles that start
    inside and show something that no earlier tile shows."""
    stop = max(1, length - size + step) if edges else length - size + 1
    return np.arange(0, max(0, stop), step, dtype=np.int64)


def tiles_of(mask: npt.NDArray[Any], width: int, height: int, mpp0: float, spec: TileSpec) -> Tiles:
    """The tiles of a slide with `width` × `height` level-0 pixels of `mpp0` µm.

    `mask` ``[h, w]`` (> 0 is tissue) is stretched over the whole slide. Tissue counts as spread evenly within a mask
    cell, so a tile's tissue fraction is exact area arithmetic at any mask resolution.
    """
    size, step = spec.size_level0(mpp0), spec.step_level0(mpp0)
    left = tile_grid(width, size, step, edges=spec.edges)
    top = tile_grid(height, size, step, edges=spec.edges)
    share = tissue_share(mask, width, height, left, top, size)
    rows, columns = np.nonzero(share >= spec.min_tissue_fraction)  # raster order
    coords = np.stack([left[columns], top[rows]], axis=1)
    return Tiles(coords, share[rows, columns].astype(np.float32), size)


def tissue_share(mask: npt.NDArray[Any], width: int, height: int, left: Ints, top: Ints, size: int) -> Floats:
    """Tissue fraction ``[len(top), len(left)]`` of every square of side `size` at these positions; there is none
    outside the slide."""
    h, w = mask.shape
    integral = np.zeros((h + 1, w + 1), np.int64 if mask.size > 1 << 31 else np.int32)
    np.cumsum(np.cumsum(mask > 0, axis=0, dtype=integral.dtype), axis=1, out=integral[1:, 1:])
    columns = _at(integral, (left + size) * (w / width), 1) - _at(integral, left * (w / width), 1)
    cells = _at(columns, (top + size) * (h / height), 0) - _at(columns, top * (h / height), 0)
    area = float(size) ** 2 * (w / width) * (h / height)
    share: Floats = np.round(np.clip(cells / area, 0.0, 1.0), 9)  # so that a full tile is 1, not 1 − 1e-16
    return share


def _at(integral: npt.NDArray[Any], where: Floats, axis: int) -> Floats:
    """An integral along one axis at fractional cells. Linear interpolation between cell edges is exact because tissue
    is even within a cell."""
    where = np.clip(where, 0.0, integral.shape[axis] - 1.0)
    cell = np.minimum(where.astype(np.int64), integral.shape[axis] - 2)
    part = (where - cell)[:, None] if axis == 0 else where - cell
    low, high = np.take(integral, cell, axis), np.take(integral, cell + 1, axis)
    between: Floats = low * (1.0 - part) + high * part
    return between


def tissue_of(reader: SlideReader, mpp0: float, mask_path: str, spec: TileSpec) -> npt.NDArray[np.uint8]:
    """The slide's tissue mask ``[h, w]``, fine enough for `spec`: from its mask file, or computed if it has none.

    Mask files are sampled in strips from the coarsest level that is fine enough, so a full-resolution mask is never in
    memory. Raises what opening and reading slides and masks raises.
    """
    if not mask_path:
        return (cached_tissue_mask(reader, mpp0) > 0).astype(np.uint8)
    mask = open_mask(mask_path)
    try:
        cells = _cells(reader.level_shapes[0], mask.level_shapes[0], spec.size_level0(mpp0))
        return (whole(mask, *cells) > 0).astype(np.uint8)
    finally:
        mask.close()


def _cells(slide: tuple[int, int], mask: tuple[int, int], size: int) -> tuple[int, int]:
    """Columns and rows of mask samples: as many as the tiles need, limited by the mask's size and by memory."""
    scale = min(CELLS_PER_TILE / size, (MAX_CELLS / (slide[0] * slide[1])) ** 0.5)
    width, height = (max(1, min(m, round(s * scale))) for s, m in zip(slide, mask, strict=True))
    return width, height
