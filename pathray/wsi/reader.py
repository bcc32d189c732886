"""Opens slides and masks with the backend that can read them.

`open_slide` tries the direct TIFF reader first, then the installed libraries in a fixed order. `backend` tells which
one it chose, so that an index can record it. Not here: reading pixels (`tiff`, `libraries`, `image`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.urls import public
from pathray.wsi.backends import formats
from pathray.wsi.backends.image import ImageMask
from pathray.wsi.backends.libraries import (
    LIBRARIES,
    SDPC_LIBRARY,
    LibraryReader,
    is_installed,
    is_sdpc,
    libraries_for,
)
from pathray.wsi.backends.pages import NotServed, OwnGrid, WrongKind
from pathray.wsi.backends.source import open_source
from pathray.wsi.backends.tiff import TiffReader
from pathray.wsi.backends.tiles import TileCache

OPEN_FORMAT = f"an open format: {formats.CONVERT}"
BACKENDS = ("auto", "tiff", *(library.name for library in (*LIBRARIES, SDPC_LIBRARY)))


class SlideReader(Protocol):
    """An open slide or mask. Levels are finest first; shapes are (width, height); mpp is µm per level-0 pixel."""

    @property
    def path(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def level_downsamples(self) -> tuple[float, ...]: ...

    @property
    def mpp(self) -> float | None: ...

    @property
    def mpp_source(self) -> str | None: ...

    @property
    def spacing_note(self) -> str:
        """Why a spacing was rejected, or which other source contradicts it; "" if there is nothing to report."""
        ...

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The box (x, y, width, height), in pixels of `level`, as uint8 ``[h, w, 3]`` (a mask: ``[h, w]``).

        The box may be partly or completely outside the slide, where pixels are white (0 in a mask). The caller owns
        the array.
        Raises UnreadableUnit (reason missing | truncated | decode | timeout | io) naming level and tile.
        """
        ...

    def close(self) -> None: ...


def open_slide(path: str, *, backend: str = "auto", cache_bytes: int = 64 << 20) -> SlideReader:
    """Open a slide file, an MRXS or DICOM folder, or a URL.

    Raises MissingFile; UserError for a format that no installed backend reads (with the format and what to do) and for
    an unknown `backend`; UnreadableUnit (``truncated`` | ``decode``) for a damaged slide.
    """
    return open_with(path, TileCache(cache_bytes), backend=backend)


def open_with(path: str, cache: TileCache, *, backend: str = "auto", library_bytes: int | None = None) -> SlideReader:
    """`open_slide` with a tile cache shared by several readers; a library's own cache gets `library_bytes`."""
    if backend not in BACKENDS:
        raise UserError("unknown slide backend", key="backend", found=backend, expected=f"one of {BACKENDS}")
    path, refused, fills = formats.slide_file_of(path), list[str](), False
    if is_sdpc(path) and not is_installed(SDPC_LIBRARY.name):
        message, found = "SDPC slides (Sqray) need the package opensdpc", "not installed"
        raise UserError(
            message, file=public(path), found=found, expected=f"pip install pathray[sdpc], or {OPEN_FORMAT}"
        )
    try:
        # Also tried when a library is requested: this check alone decides whether a file is a slide and is intact
        direct = TiffReader.open(path, cache)
        if backend in ("auto", "tiff"):
            return direct
        fills = direct.is_jpeg2000
        direct.close()
    except WrongKind as e:
        message = "not a slide of 8-bit colours"
        raise UserError(message, file=public(path), found=str(e), expected="RGB, YCbCr or grey with 8 bits") from e
    except NotServed as e:
        refused.append(f"tiff: {e}")
        fills = formats.is_tiff(_head(path)) and not isinstance(e, OwnGrid)
    for library in libraries_for(path):
        if backend not in ("auto", library.name):
            continue
        if not is_installed(library.name):
            refused.append(f"{library.name}: not installed")
            continue
        if fills and library.fills:
            refused.append(f"{library.name}: returns blank tiles where it cannot read")
            continue
        try:
            if library.can_open(path):
                return LibraryReader(path, library, cache.capacity if library_bytes is None else library_bytes)
            refused.append(f"{library.name}: format not supported")
        except Exception as e:  # every library raises its own kinds
            refused.append(f"{library.name}: {type(e).__name__}: {str(e)[:200]}")
    raise UserError(
        "no backend reads this slide",
        file=public(path),
        found="; ".join(refused),
        expected=f"pip install pathray[openslide,fastslide], or {formats.CONVERT}",
    )


def open_mask(path: str, *, cache_bytes: int = 64 << 20) -> SlideReader:
    """Open a mask: a TIFF (pyramid or one large level, tiled or not) or an image (PNG, JPEG …), local or a URL.

    `read_level` returns grey ``[h, w]``: 0 is background, any other value tissue. Colours are reduced to their largest
    channel, types wider than 8 bits to 0 and 1. A TIFF's photometric interpretation does not invert a mask. Raises
    what `open_slide` raises.
    """
    try:
        return TiffReader.open(path, TileCache(cache_bytes), mask=True)
    except NotServed as e:
        if formats.is_tiff(_head(path)):
            raise UserError("the mask cannot be read", file=public(path), found=str(e), expected="a tiled TIFF") from e
    return ImageMask(path)


def _head(path: str) -> bytes:
    source = open_source(path)
    try:
        return source.read_many([(0, 8)])[0]
    finally:
        source.close()
