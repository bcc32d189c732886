"""Reads a region given by its centre, size and spacing: chooses the level and resamples its pixels.

Not here: where regions are placed.

The geometry, with ⌊·⌉ rounding halves up (⌊v⌉ = floor(v + ½), everywhere here):
    size0 = ⌊size_px · mpp / mpp0⌉            extent in level-0 pixels
    x0    = ⌊centre_x⌉ − size0 // 2           left edge in level-0 pixels, likewise y0
    box   = ⌊x0 / down⌉, max(1, ⌊size0 / down⌉)   in pixels of the chosen level, then resampled to size_px
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pathray.wsi.reader import SlideReader
from pathray.wsi.resize import resize
from pathray.wsi.spacing import LevelChoice, axis_downsamples, choose_level, level_mpps

__all__ = ["Region", "level_box", "read_region", "read_regions", "resize"]

Box = tuple[int, int, int, int]
Pixels = npt.NDArray[np.uint8]
GROUP_PIXELS = 1 << 24  # level pixels that are read together before resizing


@dataclass(frozen=True)
class Region:
    """`pixels` ``[h, w, 3]`` (masks ``[h, w]``) at the requested spacing, read from `level` at `source_mpp`."""

    pixels: Pixels
    level: int
    source_mpp: float


@runtime_checkable
class _ReadsBoxes(Protocol):
    def read_boxes(self, level: int, boxes: Sequence[Box]) -> list[Pixels]: ...


def read_region(
    reader: SlideReader,
    center_x: float,
    center_y: float,
    size_px: int | tuple[int, int],
    mpp: float,
    *,
    mpp0: float,
    tolerance: float = 0.05,
) -> Region:
    """The region of `size_px` pixels (one side, or width and height) at `mpp`, centred at a point in level-0 pixels.

    Area interpolation when shrinking, linear when enlarging, nearest for masks (readers that return ``[h, w]``).
    Outside the slide pixels are white (0 in a mask). Raises what `SlideReader.read_level` raises.
    """
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    choice = choose_level(level_mpps(reader, mpp0), mpp, tolerance)
    box = level_box(center_x, center_y, (width, height), mpp / mpp0, axis_downsamples(reader)[choice.level])
    return _region(reader.read_level(choice.level, *box), width, height, choice)


def read_regions(
    reader: SlideReader,
    centres: Sequence[tuple[float, float]],
    size_px: int | tuple[int, int],
    mpp: float,
    *,
    mpp0: float,
    tolerance: float = 0.05,
) -> list[Region]:
    """`read_region` at several centres; a tile that several regions share is fetched and decoded once."""
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    choice = choose_level(level_mpps(reader, mpp0), mpp, tolerance)
    down = axis_downsamples(reader)[choice.level]
    boxes = [level_box(x, y, (width, height), mpp / mpp0, down) for x, y in centres]
    return [_region(crop, width, height, choice) for crop in _crops(reader, choice.level, boxes)]


def _crops(reader: SlideReader, level: int, boxes: Sequence[Box]) -> Iterator[Pixels]:
    """Pixels of the boxes, read in groups: without coarse levels, coarse regions are large before resizing, and all of
    them together may not fit into memory."""
    if not isinstance(reader, _ReadsBoxes):
        yield from (reader.read_level(level, *box) for box in boxes)
        return
    each = max((width * height for _, _, width, height in boxes), default=1)
    together = max(1, GROUP_PIXELS // max(1, each))
    for first in range(0, len(boxes), together):
        yield from reader.read_boxes(level, boxes[first : first + together])


def level_box(
    center_x: float, center_y: float, size_px: tuple[int, int], scale: float, downsample: float | tuple[float, float]
) -> Box:
    """(x, y, width, height) in a level's pixels; `scale` is mpp / mpp0, `downsample` the level's (of each axis)."""
    down_x, down_y = downsample if isinstance(downsample, tuple) else (downsample, downsample)
    left, width = _side(center_x, size_px[0], scale, down_x)
    top, height = _side(center_y, size_px[1], scale, down_y)
    return left, top, width, height


def _side(center: float, size: int, scale: float, downsample: float) -> tuple[int, int]:
    size0 = round_half_up(size * scale)
    start = round_half_up(center) - size0 // 2
    return round_half_up(start / downsample), max(1, round_half_up(size0 / downsample))


def round_half_up(value: float) -> int:
    """The nearest integer; halves are rounded up."""
    return math.floor(value + 0.5)


def _region(crop: Pixels, width: int, height: int, choice: LevelChoice) -> Region:
    return Region(resize(crop, width, height, mask=crop.ndim == 2), choice.level, choice.level_mpp)
