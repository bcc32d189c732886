"""Reads a whole slide at low resolution, strip by strip, so that memory does not grow with the slide."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from pathray.wsi.resize import resize

STRIP_PIXELS = 1 << 24  # level pixels read at once


class Readable(Protocol):
    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]: ...

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]: ...


def thumbnail(reader: Readable, max_px: int = 1024) -> npt.NDArray[np.uint8]:
    """The slide ``[h, w, 3]`` (a mask: ``[h, w]``) with a longer side of at most `max_px`; never enlarged."""
    width, height = reader.level_shapes[0]
    scale = min(1.0, max_px / max(width, height))
    return whole(reader, max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))


def whole(reader: Readable, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The slide at `width` × `height`, from the coarsest level that is not smaller.

    Each strip of output rows is made from the whole level rows that it covers. Compared with resampling the level in
    one piece, a strip's edge may shift by half a level row.
    """
    fits = [i for i, (w, h) in enumerate(reader.level_shapes) if w >= width and h >= height]
    level = max(fits, key=lambda i: -reader.level_shapes[i][0]) if fits else 0
    w, h = reader.level_shapes[level]
    rows = max(1, min(height, STRIP_PIXELS * height // (w * h)))
    strips = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        y0, y1 = (2 * top * h + height) // (2 * height), (2 * bottom * h + height) // (2 * height)
        strip = reader.read_level(level, 0, y0, w, max(1, y1 - y0))
        strips.append(resize(strip, width, bottom - top, mask=strip.ndim == 2))
    return np.concatenate(strips) if len(strips) > 1 else strips[0]
