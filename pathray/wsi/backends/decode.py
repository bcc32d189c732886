"""Decodes one compressed tile or strip of a TIFF page. Pure functions that release the interpreter lock.

Truncated data are detected here: libjpeg and OpenJPEG silently fill missing parts with grey, so the end of the data is
checked. Not here: where the bytes come from, where the pixels go.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
# (data, segment index, rows) -> [height, width, samples]; only the first `rows` rows are needed
Decoder = Callable[[bytes, int, int], Pixels]

JPEG, JPEG_2000 = {6, 7}, {33003, 33004, 33005, 34712}
_EOI = b"\xff\xd9"


# Codecs that store plain numbers: the photometric interpretation defines their colours
_PLAIN = {1, 5, 8, 32773, 32946, 34712, 34925, 34926, 50000}
_APERIO_YCBCR = 33003  # JPEG 2000 of YCbCr, whatever the photometric interpretation says
_YCBCR = 6


class Truncated(ValueError):
    """A tile's data end too early."""


class WrongSize(ValueError):
    """A tile's data declare an image of another size than the tile."""


def decoder(page: Any) -> Decoder:
    """The decoder of a tifffile page, which no longer needs the open file. ValueError for an unknown compression.

    Pixels are RGB or grey; YCbCr values are converted for every codec. The size in a tile's own header is compared with
    the tile before decoding (WrongSize).
    """
    compression = int(page.compression)
    add_check = _size_check(page)
    if compression in JPEG and page.bitspersample == 8:
        return add_check(_jpeg(page))
    decode, check, colours = page.decode, compression in JPEG_2000, to_rgb(page)

    def other(data: bytes, index: int, rows: int) -> Pixels:
        if check:
            check_jpeg2000(data)
        pixels: Pixels = decode(data, index)[0][0]
        return pixels if colours is None else colours(pixels)

    return add_check(other)


def to_rgb(page: Any) -> Callable[[Pixels], Pixels] | None:
    """The conversion of a page's values to RGB; None if they are RGB. ValueError for unsupported YCbCr."""
    compression = int(page.compression)
    stored = int(page.photometric) == _YCBCR and compression in _PLAIN
    if page.samplesperpixel != 3 or page.planarconfig != 1 or not (stored or compression == _APERIO_YCBCR):
        return None
    subsampling, reference = page.tags.valueof(530), page.tags.valueof(532)
    if stored and subsampling is not None and tuple(subsampling) != (1, 1):
        raise ValueError(f"YCbCr with chroma subsampled by {tuple(subsampling)} in compression {compression}")
    if stored and reference is not None and _ratios(reference, 6) != [0, 255, 128, 255, 128, 255]:
        raise ValueError(f"YCbCr with ReferenceBlackWhite {_ratios(reference, 6)}")
    luma = page.tags.valueof(529) if stored else None
    red, green, blue = _ratios(luma, 3) if luma is not None else (0.299, 0.587, 0.114)
    return lambda pixels: ycbcr_to_rgb(pixels, red, green, blue)


def _ratios(value: Any, count: int) -> list[float]:
    """`count` numbers, which tifffile returns either directly or as alternating numerators and denominators."""
    flat = [float(v) for v in np.asarray(value).ravel()]
    return flat if len(flat) == count else [a / b for a, b in zip(flat[::2], flat[1::2], strict=True)]


def ycbcr_to_rgb(pixels: Pixels, red: float = 0.299, green: float = 0.587, blue: float = 0.114) -> Pixels:
    """Full-range uint8 YCbCr ``[h, w, 3]`` → RGB, with the given luma coefficients (TIFF 6.0, section 21)."""
    y, cb, cr = (pixels[:, :, i].astype(np.float32) - shift for i, shift in enumerate((0, 128, 128)))
    r, b = y + (2 - 2 * red) * cr, y + (2 - 2 * blue) * cb
    g = (y - red * r - blue * b) / green
    return np.clip(np.stack([r, g, b], axis=2) + 0.5, 0, 255).astype(np.uint8)


def _size_check(page: Any) -> Callable[[Decoder], Decoder]:
    """Wraps a decoder with a check of the size that a tile's data declare."""
    width = page.tilewidth if page.is_tiled else page.imagewidth
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
    compression = int(page.compression)

    def add_check(decode: Decoder) -> Decoder:
        def decode_checked(data: bytes, index: int, rows: int) -> Pixels:
            if (claim := claimed_size(data, compression)) is not None:
                row, column = divmod(index % (across * down), across)
                least = min(width, page_width - column * width), min(height, page_height - row * height)
                for found, low, high in zip(claim, least, (width, height), strict=True):
                    if not low <= found <= -(-high // 16) * 16:
                        raise WrongSize(f"an image of {claim[0]} x {claim[1]} pixels in a tile of {width} x {height}")
            return decode(data, index, rows)

        return decode_checked

    page_width, page_height = page.imagewidth, page.imagelength
    return add_check


def claimed_size(data: bytes, compression: int) -> tuple[int, int] | None:
    """(width, height) declared in a tile's JPEG, JPEG 2000, PNG or WebP data; None if there is none."""
    if compression in JPEG:
        return _jpeg_size(data)
    if compression in JPEG_2000 and (at := data.find(b"\xff\x4f\xff\x51", 0, 1 << 16)) >= 0 and len(data) >= at + 24:
        x1, y1, x0, y0 = struct.unpack(">4I", data[at + 8 : at + 24])
        return x1 - x0, y1 - y0
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return struct.unpack(">2I", data[16:24])
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at, size = 2, len(data)
    while at + 9 < size and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        if marker == 0xDA:
            return None
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack("<2H", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _jpeg(page: Any) -> Decoder:
    import imagecodecs
    from tifffile.tifffile import jpeg_decode_colorspace

    colours = jpeg_decode_colorspace(page.photometric, page.planarconfig, page.extrasamples, page.is_jfif)
    tables, decode = page.jpegtables, imagecodecs.jpeg8_decode

    def jpeg(data: bytes, index: int, rows: int) -> Pixels:
        wanted = truncate_jpeg(data, rows)
        pixels: Pixels = decode(wanted, tables=tables, colorspace=colours[0], outcolorspace=colours[1])
        if data[-2:] != _EOI and _EOI not in data[-64:]:
            check_jpeg_without_end(data, lambda d: decode(d, tables=tables))
        if wanted is not data:
            pixels = pixels[:rows]  # further rows lack the chroma of the rows below them
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    return jpeg


def truncate_jpeg(data: bytes, rows: int) -> bytes:
    """JPEG data that decode to the first `rows` rows (or a few more); `data` itself if that saves little.

    A sequential JPEG stores its rows from top to bottom, so a smaller height in its frame header ends decoding early.
    Chroma is interpolated between neighbouring rows, so four more rows are decoded to keep the first `rows` exact.
    """
    at, size = 2, len(data)
    frame = components = 0
    while at + 9 < size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):
            frame, components = at + 5, data[at + 9]
        elif marker == 0xDA:
            height = data[frame] << 8 | data[frame + 1]
            if not frame or data[at + 4] != components or rows + 4 > 0.85 * height:
                return data  # progressive, or in several scans, or hardly shorter
            return data[:frame] + (rows + 4).to_bytes(2, "big") + data[frame + 2 :]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return data


def check_jpeg_without_end(data: bytes, decode: Callable[[bytes], Pixels]) -> None:
    """Raise Truncated if the data of a JPEG without an end marker do not fill its image.

    Some writers omit the marker. Complete data decode to the same pixels whatever bytes follow; incomplete data
    interpret the following bytes as coefficients.
    """
    plain = decode(data + _EOI)
    for filler in (b"\x00", b"\x55"):
        if not np.array_equal(plain, decode(data + filler * 256 + _EOI)):
            raise Truncated(f"JPEG data end after {len(data)} bytes, before the image does")


def check_jpeg2000(data: bytes) -> None:
    """Raise Truncated if a tile-part of a JPEG 2000 codestream is longer than the data (its header has its length)."""
    at = data.find(b"\xff\x90", 2, 1 << 16)
    while 0 <= at <= len(data) - 12 and data[at : at + 2] == b"\xff\x90":
        length = struct.unpack(">I", data[at + 6 : at + 10])[0]
        if length == 0:  # reaches to the end of the codestream
            if _EOI in data[-64:]:
                return
            break
        if at + length > len(data):
            break
        at += length
        if at == len(data) or data[at : at + 2] == _EOI:
            return
    raise Truncated(f"JPEG 2000 data end after {len(data)} bytes, before the image does")
