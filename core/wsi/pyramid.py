"""The structure of a tiled TIFF slide or mask, parsed once: which pages are levels, where their tiles lie, the spacing.

Reads no pixels. Says None where the file is a TIFF that this path does not serve (formats whose tiles overlap or are
padded, 16 bit, an alpha channel …), with the reason, so that another backend can be tried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core.wsi.decode import Decoder, decoder

MAX_SEGMENT_BYTES = 64 << 20  # a strip or tile decoded whole for every read may not be larger
VIRTUAL_STRIP_BYTES = 256 << 10
# tile grids that are not simply the image: overlaps, padding, several scanned areas, one JPEG per level
_OWN_GRID = ("is_bif", "is_ndpi", "is_scn", "is_philips", "is_lsm", "is_stk", "is_fluoview", "is_eer")


class NotServed(Exception):
    """The direct path does not serve this TIFF; the message says why."""


@dataclass(frozen=True)
class Level:
    """One level: its size and grid in pixels, and per tile its place in the file (row by row; plane by plane)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    samples: int
    planes: int  # 1: samples interleaved; 3: one grid of tiles per sample
    white: int  # the value that is white where 0 is; 0 where values rise with brightness
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    decode: Decoder

    @property
    def across(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def down(self) -> int:
        return -(-self.height // self.tile_height)


@dataclass(frozen=True)
class Pyramid:
    levels: tuple[Level, ...]
    mpp: float | None
    mpp_source: str | None
    aperio: bool = False


def parse(file: BinaryIO, *, mask: bool = False) -> Pyramid:
    """Parse an open file.

    Raises NotServed, or what tifffile raises for a damaged file (TiffFileError, ValueError, struct.error …).
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        own = [name for name in _OWN_GRID if getattr(tiff, name, False)]
        if own:
            raise NotServed(f"{own[0][3:].upper()} has a tile grid of its own")
        pages = _levels(tiff, mask)
        levels = tuple(_level(page, mask) for page in pages)
        return Pyramid(levels, *_spacing(tiff, pages[0]), aperio=bool(tiff.is_svs))


def _levels(tiff: Any, mask: bool) -> list[Any]:
    """The pages of the pyramid, finest first: the largest tiled page and every smaller one of the same shape."""
    if not len(tiff.pages):
        raise ValueError("no image file directory where the header points to")
    if str(tiff.pages[0].software).startswith("MedScan"):
        raise NotServed("Trestle's tiles overlap")
    pages = [page for page in tiff.pages if _is_image(page)]
    pages += [page for top in list(pages) for page in (top.pages or ()) if _is_image(page)]
    tiled = [page for page in pages if page.is_tiled]
    if not tiled and tiff.is_svs:
        raise NotServed("an SVS without tiles")
    candidates = tiled or pages
    if not candidates:
        raise NotServed("no page is an image")
    base = max(candidates, key=lambda page: page.imagewidth * page.imagelength)  # the first of several
    if not mask:
        _refuse_unless_rgb8(base, candidates)
    same = [p for p in candidates if p is not base and _is_reduction(p, base)]
    levels = [base]
    for page in sorted(same, key=lambda page: -page.imagewidth):
        if page.imagewidth < levels[-1].imagewidth:
            levels.append(page)
    return levels


def _is_image(page: Any) -> bool:
    return bool(page.imagedepth == 1 and page.dtype is not None and page.imagewidth > 0 and page.imagelength > 0)


def _refuse_unless_rgb8(page: Any, others: Sequence[Any]) -> None:
    if page.dtype != np.uint8 or page.bitspersample not in (8, (8, 8, 8)):
        raise NotServed(f"{page.bitspersample} bits per sample, not 8")
    if page.samplesperpixel not in (1, 3) or page.extrasamples:
        raise NotServed(f"{page.samplesperpixel} samples per pixel, not RGB")
    if int(page.photometric) not in (0, 1, 2, 6):
        raise NotServed(f"photometric interpretation {page.photometric}, not RGB, YCbCr or grey")
    if page.samplesperpixel == 1 and any(p.shape == page.shape for p in others if p is not page):
        raise NotServed("channels or focal planes in pages of their own")


def _is_reduction(page: Any, base: Any) -> bool:
    """Whether `page` shows what `base` shows, smaller: aspect equal up to the rounding of its sides, same samples."""
    w, h = page.imagewidth, page.imagelength
    if w >= base.imagewidth or h >= base.imagelength or int(page.subfiletype) not in (0, 1):
        return False
    if page.samplesperpixel != base.samplesperpixel or page.dtype != base.dtype:
        return False
    down = math.sqrt(base.imagewidth * base.imagelength / (w * h))
    return bool(
        abs(base.imagewidth / down - w) <= 1.0 + 0.005 * w and abs(base.imagelength / down - h) <= 1.0 + 0.005 * h
    )


def _level(page: Any, mask: bool) -> Level:
    samples, planes = (page.samplesperpixel, 1) if page.planarconfig == 1 else (1, page.samplesperpixel)
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    tile_w = page.tilewidth if page.is_tiled else page.imagewidth
    tile_h = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    white = (1 << int(page.bitspersample)) - 1 if int(page.photometric) == 0 else 0
    if not page.is_tiled and int(page.compression) == 1 and planes == 1 and _is_one_block(offsets, counts):
        return _virtual_strips(page, int(offsets[0]), samples, white)
    if tile_w * tile_h * samples * max(1, page.dtype.itemsize) > MAX_SEGMENT_BYTES:
        raise NotServed(f"one compressed strip of {tile_w} x {tile_h} pixels: rewrite the file with tiles")
    level = Level(
        page.imagewidth, page.imagelength, tile_w, tile_h, samples, planes, white, offsets, counts, decoder(page)
    )
    if offsets.size < level.across * level.down * planes or counts.size < offsets.size:
        raise NotServed(f"{offsets.size} tiles in the file, {level.across * level.down * planes} in the grid")
    return level


def _is_one_block(offsets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> bool:
    return bool(offsets.size == counts.size and np.array_equal(offsets[1:], (offsets + counts)[:-1]))


def _virtual_strips(page: Any, start: int, samples: int, white: int) -> Level:
    """Uncompressed rows in one block, cut into strips of a size worth reading: a mask saved as one huge strip."""
    if page.bitspersample % 8 if isinstance(page.bitspersample, int) else True:
        raise NotServed(f"uncompressed rows of {page.bitspersample} bits per sample")
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    width, height = page.imagewidth, page.imagelength
    row = width * samples * dtype.itemsize
    rows = max(1, min(height, VIRTUAL_STRIP_BYTES // row))
    first = np.arange(0, height, rows, dtype=np.int64)

    def decode(data: bytes, index: int, wanted: int) -> npt.NDArray[Any]:
        return np.frombuffer(data, dtype).reshape(-1, width, samples)

    offsets, counts = start + first * row, np.minimum(rows, height - first) * row
    return Level(width, height, width, rows, samples, 1, white, offsets, counts, decode)


def _spacing(tiff: Any, page: Any) -> tuple[float | None, str | None]:
    """Micrometres per pixel of level 0 and where it stands: ``header`` (the vendor's text) or ``tags`` (resolution)."""
    for found in (_aperio_mpp(page.description), _ome_mpp(tiff)):
        if found is not None:
            return found, "header"
    tags = _resolution_mpp(page)
    return (tags, "tags") if tags is not None else (None, None)


def plausible(x: float, y: float) -> float | None:
    """The mean of two spacings, or None where they cannot be a slide's (72 dpi is 353 µm; a real pixel is 0.05–100)."""
    ok = all(math.isfinite(v) and 0.01 < v < 200 for v in (x, y)) and max(x, y) < 1.1 * min(x, y)
    return x if ok and x == y else (x + y) / 2 if ok else None


def _aperio_mpp(description: str) -> float | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", description or "")
    try:
        return plausible(float(found[1]), float(found[1])) if found else None
    except ValueError:
        return None


_MICROMETRES = {"µm": 1.0, "um": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _ome_mpp(tiff: Any) -> float | None:
    text = tiff.ome_metadata if tiff.is_ome else None
    found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text or "")
    if not found:
        return None
    attributes = dict(re.findall(r"(PhysicalSize[XY](?:Unit)?)\s*=\s*\"([^\"]*)\"", found[0]))
    try:
        sizes: Sequence[float] = [
            float(attributes[f"PhysicalSize{a}"]) * _MICROMETRES[attributes.get(f"PhysicalSize{a}Unit", "µm")]
            for a in "XY"
        ]
    except (KeyError, ValueError):
        return None
    return plausible(sizes[0], sizes[1])


def _resolution_mpp(page: Any) -> float | None:
    """From XResolution, YResolution and ResolutionUnit; None where the unit is not a length."""
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, default=2)))
    if unit is None:
        return None
    sizes = []
    for code in (282, 283):
        value = page.tags.valueof(code)
        if not value or not value[0] or not value[1]:
            return None
        sizes.append(unit * value[1] / value[0])
    return plausible(sizes[0], sizes[1])
