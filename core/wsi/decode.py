"""One compressed tile or strip of a TIFF page → its pixels. Pure functions that let go of the interpreter lock.

Damage is found here: libjpeg and OpenJPEG fill what is missing with grey and say nothing, so the end of the data is
checked. Where the bytes come from and where the pixels go is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
# (data, segment index, rows) -> [height, width, samples], of which only the first `rows` rows are asked for
Decoder = Callable[[bytes, int, int], Pixels]

JPEG, JPEG_2000 = {6, 7}, {33003, 33004, 33005, 34712}
_EOI = b"\xff\xd9"


class Truncated(ValueError):
    """The data of a tile end too early."""


def decoder(page: Any) -> Decoder:
    """The decoder of a tifffile page; needs the file no longer once made. ValueError for an unknown compression."""
    compression = int(page.compression)
    if compression in JPEG and page.bitspersample == 8:
        return _jpeg(page)
    decode, check = page.decode, compression in JPEG_2000

    def other(data: bytes, index: int, rows: int) -> Pixels:
        if check:
            check_jpeg2000(data)
        pixels: Pixels = decode(data, index)[0][0]
        return pixels

    return other


def _jpeg(page: Any) -> Decoder:
    import imagecodecs
    from tifffile.tifffile import jpeg_decode_colorspace

    colours = jpeg_decode_colorspace(page.photometric, page.planarconfig, page.extrasamples, page.is_jfif)
    tables, decode = page.jpegtables, imagecodecs.jpeg8_decode

    def jpeg(data: bytes, index: int, rows: int) -> Pixels:
        wanted = shortened(data, rows)
        pixels: Pixels = decode(wanted, tables=tables, colorspace=colours[0], outcolorspace=colours[1])
        if data[-2:] != _EOI and _EOI not in data[-64:]:
            check_jpeg_without_end(data, lambda d: decode(d, tables=tables))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    return jpeg


def shortened(data: bytes, rows: int) -> bytes:
    """JPEG data that decode to the first `rows` rows only (a few more may come), or `data` where that saves little.

    A sequential JPEG stores its rows from top to bottom, so that a smaller height in its frame header ends the work
    early. Chroma is interpolated between neighbouring rows: four more are decoded, and the first `rows` stay exact.
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
    """Truncated when the entropy-coded data of a JPEG without an end marker do not fill its image.

    Some writers leave the marker out. Data that are complete decode to the same pixels whatever bytes follow them;
    data that are not take the bytes that follow for coefficients.
    """
    plain = decode(data + _EOI)
    for filler in (b"\x00", b"\x55"):
        if not np.array_equal(plain, decode(data + filler * 256 + _EOI)):
            raise Truncated(f"JPEG data end after {len(data)} bytes, before the image does")


def check_jpeg2000(data: bytes) -> None:
    """Truncated when a tile-part of a JPEG 2000 codestream is longer than what is there (its length is in its head)."""
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
