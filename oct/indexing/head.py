"""Reads the header of a DICOM file on storage from its first bytes: up to the pixels, and not the pixels.

Volumes of 50 MB have headers of some 100 kB, and an index reads each of them. Not here: what a header means
(oct.dicom.header).
"""

from __future__ import annotations

from oct.indexing.manifest import Spacing
from oct.volume import VolumeHeader
from pathray.errors import UnreadableUnit
from pathray.wsi.backends.source import open_source

FIRST_BYTES, GROWTH = 1 << 18, 8
PIXEL_BYTES = 1 << 16  # of the pixels: the header of the first compressed frame
RAW_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


def read_file_header(path: str, manifest_spacing: Spacing) -> tuple[VolumeHeader, int]:
    """The header of the file at a path or URL, and the file's size in bytes.

    MissingFile; UnreadableUnit for what oct.dicom.header.read_header refuses, and for a file that is smaller than its
    uncompressed pixels; UnreachableUnit while its storage fails.
    """
    from oct.dicom.header import read_header

    source = open_source(path)
    try:
        size, wanted, data = source.size, FIRST_BYTES, b""
        while len(data) < size and not (data and _reaches_pixels(data, path)):
            more = source.read_many([(len(data), min(wanted, size) - len(data))])[0]
            if not more:
                raise UnreadableUnit("truncated", path, "the file became shorter while it was read")
            data, wanted = data + more, wanted * GROWTH
    finally:
        source.close()
    header = read_header(data, path, manifest_spacing)
    _check_size(header, size, path)
    return header, size


def _reaches_pixels(data: bytes, path: str) -> bool:
    """Whether the first bytes of a file hold its whole header and the begin of its pixels."""
    from oct.dicom.file import open_dicom

    try:
        pixels = open_dicom(data, path).pixels
    except UnreadableUnit:  # the header is longer, or damaged, which reading the whole file will tell
        return False
    return pixels is not None and len(pixels) >= PIXEL_BYTES


def _check_size(header: VolumeHeader, size: int, path: str) -> None:
    if header.exclusion or header.transfer_syntax_uid not in RAW_SYNTAXES:
        return
    pixels = header.frames * header.rows * header.columns * (2 if header.bits_stored > 8 else 1)
    if size < pixels:
        detail = f"{size:,} bytes, less than the {pixels:,} of {header.frames} frames"
        raise UnreadableUnit("truncated", path, detail)
