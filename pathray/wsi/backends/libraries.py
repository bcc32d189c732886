"""OpenSlide, fastslide, tiffslide and opensdpc as slide readers, for formats that the direct TIFF reader does not read.

Each process has its own handles (a forked handle shares its file offset and returns wrong tiles); tiffslide's are also
per thread. Pixels are returned as the library reads them. OpenSlide addresses levels in level-0 pixels, so on a level
with a fractional downsample the origin is the nearest level-0 pixel.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pathray.errors import UnreadableUnit, UserError
from pathray.urls import is_url, public
from pathray.wsi.backends.formats import SDPC
from pathray.wsi.backends.header import Spacing, check_spacing

Pixels = npt.NDArray[np.uint8]


class Library(Protocol):
    """One slide library: whether it can open a path, and how to open, describe and read a slide."""

    name: str
    by_thread: bool
    fills: bool  # returns unreadable tiles as a constant, without an error

    def can_open(self, path: str) -> bool: ...

    def open(self, path: str, cache_bytes: int) -> Any: ...

    def shapes(self, slide: Any) -> tuple[tuple[int, int], ...]: ...

    def downsamples(self, slide: Any) -> tuple[float, ...]: ...

    def spacing(self, slide: Any) -> Spacing: ...

    def read(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> Pixels: ...


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class OpenSlideLibrary:
    name, by_thread, fills = "openslide", False, False

    def can_open(self, path: str) -> bool:
        import openslide

        return not is_url(path) and openslide.OpenSlide.detect_format(path) is not None

    def open(self, path: str, cache_bytes: int) -> Any:
        import openslide

        slide = openslide.OpenSlide(path)
        slide.set_cache(openslide.OpenSlideCache(cache_bytes))
        return slide

    def shapes(self, slide: Any) -> tuple[tuple[int, int], ...]:
        return tuple(slide.level_dimensions)

    def downsamples(self, slide: Any) -> tuple[float, ...]:
        return tuple(slide.level_downsamples)

    def spacing(self, slide: Any) -> Spacing:
        source = "tags" if slide.properties.get("openslide.vendor") == "generic-tiff" else "header"
        return _spacing(slide.properties.get("openslide.mpp-x"), slide.properties.get("openslide.mpp-y"), source)

    def read(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        down = slide.level_downsamples[level]
        at = (int(x * down + 0.5), int(y * down + 0.5))
        return _on_white(np.asarray(slide.read_region(at, level, (width, height))))


class _LevelSizes:
    """The levels of a slide as plain numbers, for libraries with the same two attributes."""

    def shapes(self, slide: Any) -> tuple[tuple[int, int], ...]:
        return tuple((int(w), int(h)) for w, h in slide.level_dimensions)

    def downsamples(self, slide: Any) -> tuple[float, ...]:
        return tuple(float(d) for d in slide.level_downsamples)


class FastSlideLibrary(_LevelSizes):
    name, by_thread, fills = "fastslide", False, True

    def __init__(self) -> None:
        self._pid: int | None = None

    def can_open(self, path: str) -> bool:
        import fastslide

        return not is_url(path) and bool(fastslide.is_supported(path))

    def open(self, path: str, cache_bytes: int) -> Any:
        """UserError in a forked child of a process that used the library: its threads are gone and reads would hang."""
        import fastslide

        if self._pid not in (None, os.getpid()):
            raise UserError(
                "fastslide cannot be used in a forked child of a process that used it",
                file=path,
                expected="worker processes that are spawned, not forked",
            )
        self._pid = os.getpid()

        slide = fastslide.FastSlide.from_file_path(path, cache=cache_bytes or None)
        if slide.dtype != "uint8" or slide.num_channels not in (1, 3):
            raise ValueError(f"{slide.num_channels} channels of {slide.dtype}, not 8-bit RGB")
        return slide

    def spacing(self, slide: Any) -> Spacing:
        x, y = slide.mpp
        return _spacing(x, y, "header")

    def read(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return _rgb8(np.asarray(slide.read_region((x, y), level, (width, height)).numpy()))


class TiffSlideLibrary(_LevelSizes):
    name, by_thread, fills = "tiffslide", True, False

    def can_open(self, path: str) -> bool:
        return True  # opening raises if it cannot

    def open(self, path: str, cache_bytes: int) -> Any:
        import tiffslide

        slide = tiffslide.TiffSlide(path)
        if (dtype := slide.ts_tifffile.series[0].dtype) != np.uint8:
            raise ValueError(f"pixels of {dtype}, not 8-bit RGB")
        return slide

    def spacing(self, slide: Any) -> Spacing:
        source = "header" if slide.properties.get("tiffslide.vendor") == "aperio" else "tags"
        return _spacing(slide.properties.get("tiffslide.mpp-x"), slide.properties.get("tiffslide.mpp-y"), source)

    def read(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        (w0, h0), (w, h) = slide.level_dimensions[0], slide.level_dimensions[level]
        at = (-(-x * w0 // w), -(-y * h0 // h))  # the first level-0 pixel that the library maps to (x, y)
        return _rgb8(np.asarray(slide.read_region(at, level, (width, height), as_array=True)))


class OpenSdpcLibrary(_LevelSizes):
    """The one library for .sdpc files. It addresses levels in level-0 pixels and rounds down, as `read` undoes."""

    name, by_thread, fills = "opensdpc", True, False

    def can_open(self, path: str) -> bool:
        return is_sdpc(path) and not is_url(path)

    def open(self, path: str, cache_bytes: int) -> Any:
        import opensdpc

        return opensdpc.OpenSdpc(path)

    def spacing(self, slide: Any) -> Spacing:
        ruler = slide.sdpc.contents.picHead.contents.ruler
        return _spacing(ruler, ruler, "header")

    def read(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        down = float(slide.level_downsamples[level])
        at = (math.ceil(x * down), math.ceil(y * down))  # the first level-0 pixel that the library maps to (x, y)
        return _rgb8(np.asarray(slide.read_region(at, level, (width, height))))


SDPC_LIBRARY = OpenSdpcLibrary()
LIBRARIES: tuple[Library, ...] = (OpenSlideLibrary(), FastSlideLibrary(), TiffSlideLibrary())


def libraries_for(path: str) -> tuple[Library, ...]:
    """The libraries to try for a file, in order: for a format with a library of its own, that one only."""
    return (SDPC_LIBRARY,) if is_sdpc(path) else LIBRARIES


def is_sdpc(path: str) -> bool:
    return path.split("?")[0].lower().endswith(SDPC)


class LibraryReader:
    """A `SlideReader` over one library. The constructor raises what the library's open raises."""

    def __init__(self, path: str, library: Library, cache_bytes: int) -> None:
        self.path, self.backend, self._library, self._cache_bytes = path, library.name, library, cache_bytes
        self._pid, self._shared, self._own = os.getpid(), None, threading.local()
        slide = self._handle()
        self.level_shapes, self.level_downsamples = library.shapes(slide), library.downsamples(slide)
        if not self.level_shapes or min(min(shape) for shape in self.level_shapes) < 1:
            raise ValueError(f"levels of {self.level_shapes} pixels")
        spacing = library.spacing(slide)
        self.mpp, self.mpp_source, self.spacing_note = spacing.mpp, spacing.source, spacing.note

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels of a box of one level; see `SlideReader`."""
        w, h = self.level_shapes[level]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, w), min(y + height, h)
        if x0 >= x1 or y0 >= y1:
            return np.full((height, width, 3), 255, np.uint8)
        try:
            inside = self._library.read(self._handle(), level, x0, y0, x1 - x0, y1 - y0)
        except UserError:
            raise
        except Exception as e:  # every library raises its own kinds
            self._drop()  # an OpenSlide handle is unusable after an error
            detail = f"level {level}, box ({x}, {y}, {width}, {height}): {type(e).__name__}: {e}"
            raise UnreadableUnit("decode", public(self.path), detail) from e
        if inside.shape[:2] == (height, width):
            return inside
        out = np.full((height, width, 3), 255, np.uint8)
        out[y0 - y : y1 - y, x0 - x : x1 - x] = inside
        return out

    def close(self) -> None:
        self._drop()

    def _handle(self) -> Any:
        """This process's handle (this thread's, if the library needs one per thread)."""
        if self._pid != os.getpid():
            self._pid, self._shared, self._own = os.getpid(), None, threading.local()
        slide = getattr(self._own, "slide", None) if self._library.by_thread else self._shared
        if slide is None:
            slide = self._library.open(self.path, self._cache_bytes)
            if self._library.by_thread:
                self._own.slide = slide
            else:
                self._shared = slide
        return slide

    def _drop(self) -> None:
        """Release the handle; it is closed when the last read that uses it ends."""
        self._shared, self._own = None, threading.local()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return LibraryReader, (self.path, self._library, self._cache_bytes)


def _spacing(x: object, y: object, source: str) -> Spacing:
    try:
        return check_spacing(float(x), float(y), source)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return Spacing()


def _on_white(rgba: npt.NDArray[np.uint8]) -> Pixels:
    """RGBA composited on a white background."""
    alpha = rgba[:, :, 3]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    a = alpha[:, :, None].astype(np.uint16)
    return ((rgba[:, :, :3] * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def _rgb8(pixels: npt.NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"{pixels.dtype} {pixels.shape}: not 8-bit RGB")
    if pixels.shape[2] == 4:
        return _on_white(pixels)
    return np.ascontiguousarray(pixels) if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
