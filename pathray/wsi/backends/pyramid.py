"""Parses the structure of a tiled TIFF slide or mask once: levels, positions of their tiles in the file, spacing.

Reads no pixels. Raises NotServed, with the reason, for a TIFF that needs another backend (overlapping or padded tiles,
an alpha channel …), and WrongKind for a file that no backend may open as a slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pathray.files.images import ImageError, palette_values
from pathray.wsi.backends.decode import Decoder, decoder, to_rgb
from pathray.wsi.backends.header import Spacing, description, spacing_of
from pathray.wsi.backends.pages import NotServed, OwnGrid, check_chain, levels_of

MAX_SEGMENT_BYTES = 64 << 20  # largest strip or tile, since it is decoded whole for every read
VIRTUAL_STRIP_BYTES = 256 << 10
# formats whose tile grid is not simply the image: overlaps, padding, several scanned areas, one JPEG per level
_OWN_GRID = ("is_bif", "is_ndpi", "is_scn", "is_philips", "is_lsm", "is_stk", "is_fluoview", "is_eer")


@dataclass(frozen=True)
class Level:
    """One level: its size and tile grid in pixels, and each tile's position in the file (by plane, row, column)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    samples: int
    planes: int  # 1: interleaved samples; 3: one tile grid per sample
    white: int  # the largest value if 0 is white, which inverts pixels; 0 if values rise with brightness
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    decode: Decoder
    compression: int = 1
    meaning: npt.NDArray[np.uint8] | None = None  # value of each palette index of a mask

    @property
    def across(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def down(self) -> int:
        return -(-self.height // self.tile_height)


@dataclass(frozen=True)
class Pyramid:
    levels: tuple[Level, ...]
    spacing: Spacing
    aperio: bool = False


def parse(file: BinaryIO, *, mask: bool = False) -> Pyramid:
    """Parse an open file.

    Raises NotServed, or what tifffile raises for a damaged file (TiffFileError, ValueError, struct.error …).
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        own = [name for name in _OWN_GRID if getattr(tiff, name, False)]
        if own:
            raise OwnGrid(f"{own[0][3:].upper()} uses a vendor-specific tile grid")
        check_chain(file)
        pages = levels_of(tiff, mask)
        levels = tuple(_level(page, mask) for page in pages)
        return Pyramid(levels, spacing_of(tiff, pages[0]), aperio=description(tiff.pages[0]).startswith("Aperio"))


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
        page.imagewidth,
        page.imagelength,
        tile_w,
        tile_h,
        samples,
        planes,
        white,
        offsets,
        counts,
        decoder(page),
        int(page.compression),
        _mask_values(page) if mask else None,
    )
    if offsets.size < level.across * level.down * planes or counts.size < offsets.size:
        raise ValueError(f"the file lists {offsets.size} tiles, expected {level.across * level.down * planes}")
    return level


def _mask_values(page: Any) -> npt.NDArray[np.uint8] | None:
    """The mask value of each palette index; NotServed if the palette is ambiguous."""
    if int(page.photometric) != 3 or page.colormap is None or page.dtype != np.uint8:
        return None
    colours = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
    last = int(np.flatnonzero(colours.any(axis=1)).max(initial=0))  # palettes are padded with black
    try:
        return palette_values(colours, np.arange(last + 1))
    except ImageError as e:
        raise NotServed(str(e)) from e


def _is_one_block(offsets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> bool:
    return bool(offsets.size == counts.size and np.array_equal(offsets[1:], (offsets + counts)[:-1]))


def _virtual_strips(page: Any, start: int, samples: int, white: int) -> Level:
    """Uncompressed rows in one block (a mask saved as one huge strip), split into strips of a useful size."""
    if page.bitspersample % 8 if isinstance(page.bitspersample, int) else True:
        raise NotServed(f"uncompressed rows of {page.bitspersample} bits per sample")
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    width, height = page.imagewidth, page.imagelength
    row = width * samples * dtype.itemsize
    rows = max(1, min(height, VIRTUAL_STRIP_BYTES // row))
    first, colours = np.arange(0, height, rows, dtype=np.int64), to_rgb(page)

    def decode(data: bytes, index: int, wanted: int) -> npt.NDArray[Any]:
        pixels = np.frombuffer(data, dtype).reshape(-1, width, samples)
        return pixels if colours is None else colours(pixels)

    offsets, counts = start + first * row, np.minimum(rows, height - first) * row
    return Level(width, height, width, rows, samples, 1, white, offsets, counts, decode, 1, _mask_values(page))
