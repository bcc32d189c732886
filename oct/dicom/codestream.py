"""What a JPEG 2000 codestream says of its samples: the SIZ marker (ISO 15444-1, A.5.1). Not here: decoding."""

from __future__ import annotations

import struct
from typing import NamedTuple

from oct.dicom.file import DicomFile

SOC_SIZ = b"\xff\x4f\xff\x51"  # start of codestream, then the size marker
EXTENT = 8  # bytes from the start of the codestream to Xsiz, Ysiz, XOsiz and YOsiz
SSIZ = 42  # bytes from the start of the codestream to the first component's depth
SEARCHED = 4096  # bytes: offset tables and boxes before the codestream are shorter, or the file is read again


class Codestream(NamedTuple):
    """Sign and precision of the first component, and the image's size."""

    signed: bool
    bits: int
    shape: tuple[int, int]  # rows, columns


def read_codestream(file: DicomFile) -> Codestream | None:
    """Of the first frame; None where pixels are missing or stored in another way."""
    if file.pixels is None or not file.is_encapsulated:
        return None
    return parse_codestream(file.pixels[: 8 + _table_bytes(file.pixels) + SEARCHED])


def parse_codestream(data: bytes | memoryview) -> Codestream | None:
    """Of bytes that contain the start of a codestream; None if they do not."""
    head = bytes(data)
    at = head.find(SOC_SIZ)
    if at < 0 or len(head) <= at + SSIZ:
        return None
    ssiz = head[at + SSIZ]
    right, bottom, left, top = struct.unpack_from(">4L", head, at + EXTENT)
    return Codestream(bool(ssiz & 0x80), (ssiz & 0x7F) + 1, (bottom - top, right - left))


def _table_bytes(pixels: memoryview) -> int:
    """The length of the basic offset table, the first item."""
    return int.from_bytes(pixels[4:8], "little") if len(pixels) >= 8 else 0
