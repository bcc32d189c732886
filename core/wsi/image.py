"""Masks that are plain images (PNG, JPEG, BMP …): one level, decoded whole when first read. Not for slides."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UnreadableUnit, UserError
from core.urls import public
from core.wsi.source import open_source

MAX_PIXELS = 1 << 28


class ImageMask:
    """A grey mask ``[h, w]``, 0 outside. The size is read at once, the pixels when they are first asked for."""

    backend, mpp, mpp_source, spacing_note = "image", None, None, ""

    def __init__(self, path: str) -> None:
        self.path = path
        image = self._open()
        self.level_shapes: tuple[tuple[int, int], ...] = (image.size,)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        if image.size[0] * image.size[1] > MAX_PIXELS:
            raise UserError(
                "the mask is too large for an image that is decoded whole",
                file=public(path),
                found=f"{image.size[0]} x {image.size[1]} pixels",
                expected=f"at most {MAX_PIXELS} pixels, or a tiled TIFF",
            )
        self._pixels: npt.NDArray[np.uint8] | None = None

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """[height, width] of the only level."""
        assert level == 0, level
        if self._pixels is None:
            self._pixels = self._decoded()
        out = np.zeros((height, width), np.uint8)
        h, w = self._pixels.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, w), min(y + height, h)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._pixels[y0:y1, x0:x1]
        return out

    def close(self) -> None:
        self._pixels = None

    def _open(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        source = open_source(self.path)
        try:
            return Image.open(io.BytesIO(source.read_many([(0, source.size)])[0]))
        except (UnidentifiedImageError, Image.DecompressionBombError) as e:
            raise UserError("the mask cannot be read", file=public(self.path), found=str(e)) from e
        finally:
            source.close()

    def _decoded(self) -> npt.NDArray[np.uint8]:
        try:
            pixels = np.asarray(self._open())
        except (OSError, SyntaxError, ValueError) as e:
            raise UnreadableUnit("decode", public(self.path), f"{type(e).__name__}: {e}") from e
        if pixels.ndim == 3:
            pixels = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1].max(axis=2)  # without alpha
        return pixels if pixels.dtype == np.uint8 else (pixels > 0).astype(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageMask, (os.fspath(self.path),)
