"""Masks stored as plain images (PNG, JPEG, BMP …): one level, decoded as a whole on first read. Not for slides."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UnreadableUnit, UserError
from pathray.files.images import ImageError, mask_of, open_image
from pathray.urls import public
from pathray.wsi.backends.source import open_source


class ImageMask:
    """A grey mask ``[h, w]``, 0 outside. The size is read when opened, the pixels on the first read."""

    backend, mpp, mpp_source, spacing_note = "image", None, None, ""

    def __init__(self, path: str) -> None:
        self.path = path
        image = self._open()
        self.level_shapes: tuple[tuple[int, int], ...] = (image.size,)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        self._pixels: npt.NDArray[np.uint8] | None = None

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The pixels ``[height, width]`` of a box of the only level."""
        assert level == 0, level
        if self._pixels is None:
            self._pixels = self._read_mask()
        out = np.zeros((height, width), np.uint8)
        h, w = self._pixels.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, w), min(y + height, h)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._pixels[y0:y1, x0:x1]
        return out

    def close(self) -> None:
        self._pixels = None

    def _open(self) -> Any:
        source = open_source(self.path)
        try:
            return open_image(source.read_many([(0, source.size)])[0])
        except ImageError as e:
            expected = "a PNG, JPEG, BMP or GIF, or a tiled TIFF"
            raise UserError("the mask cannot be read", file=public(self.path), found=str(e), expected=expected) from e
        finally:
            source.close()

    def _read_mask(self) -> npt.NDArray[np.uint8]:
        try:
            return mask_of(self._open())
        except ImageError as e:
            raise UnreadableUnit("decode", public(self.path), str(e)) from e

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageMask, (os.fspath(self.path),)
