"""An open slide that knows its spacing, for notebooks and scripts. How bytes become pixels is in `pathray.wsi`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.urls import public
from pathray.wsi import regions
from pathray.wsi import thumbnail as thumbnails
from pathray.wsi.reader import SlideReader
from pathray.wsi.reader import open_slide as open_reader

Pixels = npt.NDArray[np.uint8]


class Slide:
    """A slide and its spacing: `mpp` is µm per level-0 pixel, `size` (width, height) in level-0 pixels.

    Made by `open_slide`. A context manager: leaving the block closes the file. `reader` is the open file for whoever
    needs single levels (`pathray.wsi.reader.SlideReader`).
    """

    def __init__(self, reader: SlideReader, mpp: float, mpp_source: str) -> None:
        self.reader, self.mpp, self.mpp_source = reader, mpp, mpp_source

    @property
    def path(self) -> str:
        """The path or URL that was opened."""
        return self.reader.path

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return os.path.splitext(os.path.basename(public(self.path).rstrip("/")))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return self.reader.level_shapes[0]

    def read_region(self, center: Sequence[float], mpp: float, size: int | tuple[int, int]) -> Pixels:
        """The region around a centre at a spacing: uint8 ``[h, w, 3]``.

        center: (x, y) in level-0 pixels. mpp: µm per pixel of the result. size: pixels of a side, or (width, height).
        The nearest level is averaged down or, where the slide holds less than was asked for, enlarged. Outside of the
        slide is white. Raises UserError for values that make no region, UnreadableUnit where the file is damaged.
        """
        x, y = _center(center)
        width, height = _size(size)
        region = regions.read_region(self.reader, x, y, (width, height), check_mpp(mpp), mpp0=self.mpp)
        return region.pixels

    def thumbnail(self, max_px: int = 1024) -> Pixels:
        """The whole slide, uint8 ``[h, w, 3]``, its longer side `max_px` pixels, or its own where that is less."""
        if max_px < 1:
            raise UserError("a thumbnail has at least one pixel", key="max_px", found=max_px, expected=">= 1")
        return thumbnails.thumbnail(self.reader, max_px)

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        self.reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.size
        return f"Slide({public(self.path)!r}, {width} x {height} pixels of {self.mpp:g} µm)"


def open_slide(path: str | os.PathLike[str], *, mpp: float | None = None, backend: str = "auto") -> Slide:
    """Open a slide file, an MRXS or DICOM folder, or a URL; the `Slide` knows its spacing in µm per pixel.

    mpp: µm per level-0 pixel. It is needed where the file does not say, and overrides what the file says, as a
    manifest's column `mpp` does. backend: which reader, see docs/formats.md.
    Raises MissingFile; UserError for a format that cannot be read and for a slide whose spacing nobody knows;
    UnreadableUnit for a damaged file.
    """
    if mpp is not None:
        mpp = check_mpp(mpp)
    reader = open_reader(os.fspath(path), backend=backend)
    if mpp is not None:
        return Slide(reader, mpp, "stated")
    if reader.mpp is not None:
        return Slide(reader, reader.mpp, reader.mpp_source or "header")
    note = reader.spacing_note or None
    reader.close()
    expected = "open_slide(path, mpp=…), µm per level-0 pixel"
    raise UserError(
        "the slide does not say its pixel size", file=public(os.fspath(path)), key="mpp", found=note, expected=expected
    )


def check_mpp(mpp: float) -> float:
    """A spacing as a float. UserError for one that is not a number > 0."""
    if isinstance(mpp, bool) or not isinstance(mpp, int | float | np.number) or not 0 < mpp < math.inf:
        raise UserError("not a spacing", key="mpp", found=mpp, expected="µm per pixel, > 0")
    return float(mpp)


def _center(center: Sequence[float]) -> tuple[float, float]:
    values = np.asarray(center, np.float64)
    if values.shape != (2,) or not np.isfinite(values).all():
        raise UserError("not a centre", key="center", found=center, expected="(x, y) in level-0 pixels")
    return float(values[0]), float(values[1])


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    values = np.asarray(size)
    if values.shape not in ((), (2,)) or values.dtype.kind not in "iu" or values.min() < 1:
        raise UserError("not a size", key="size", found=size, expected="pixels of a side, or (width, height), >= 1")
    width, height = np.broadcast_to(values, (2,)).tolist()
    return width, height
