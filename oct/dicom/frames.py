"""The frames of an OPT file, one at a time, in their order along the slow axis.

uint8 or uint16 in native byte order, whatever the file has. Signed pixels are shifted to unsigned, so that the order of
greys is kept. Not here: codecs (oct.dicom.codecs), the grid (oct.dicom.resample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from pydicom import uid

from oct.dicom.attributes import read_count, read_text
from oct.dicom.codecs import Pixels, decode_frame
from oct.dicom.file import DicomFile
from oct.dicom.fragments import split_frames
from oct.volume import VolumeHeader
from pathray.errors import UnreadableUnit

KNOW_SIGN = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
ReadStored = Callable[[int], Pixels]  # stored frame number → its pixels


def iterate_frames(
    file: DicomFile, header: VolumeHeader, begin: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Frames `[rows, columns]` uint8 or uint16, from number `begin` to before `end` along the slow axis.

    That the file holds as many frames as it says is checked at the call, before the first one is decoded.
    UnreadableUnit: `frames`, `truncated`, `corrupt`, `unsupported`, `decode`.
    """
    read = _open_frames(file, header)
    lowest_bit = _lowest_bit(file, header)
    inverted = read_text(file.dataset, "PhotometricInterpretation").upper() == "MONOCHROME1"
    return (_to_unsigned(read(i), header.bits_stored, lowest_bit, inverted) for i in header.geometry.order[begin:end])


def _open_frames(file: DicomFile, header: VolumeHeader) -> ReadStored:
    if file.pixels is None:
        raise UnreadableUnit("truncated", file.path, "the file has no pixel data")
    return _open_fragments(file, header) if file.is_encapsulated else _open_native(file, header)


def _open_fragments(file: DicomFile, header: VolumeHeader) -> ReadStored:
    assert file.pixels is not None
    frames = split_frames(file.pixels, header.frames, file.path)
    shape, bits = (header.rows, header.columns), read_count(file.dataset, "BitsAllocated") or 8

    def read(i: int) -> Pixels:
        own = frames[i]
        data = own[0] if len(own) == 1 else memoryview(b"".join(own))
        pixels = decode_frame(file.syntax_uid, data, shape, bits, file.path, i)
        return pixels.view(f"i{pixels.itemsize}") if header.signed and file.syntax_uid not in KNOW_SIGN else pixels

    return read


def _open_native(file: DicomFile, header: VolumeHeader) -> ReadStored:
    """Uncompressed frames, views of the file's bytes."""
    assert file.pixels is not None and file.declared_bytes is not None
    bits = read_count(file.dataset, "BitsAllocated") or 8
    size = header.rows * header.columns * bits // 8
    if file.declared_bytes > len(file.pixels):
        found = f"{len(file.pixels):,} of {file.declared_bytes:,} bytes"
        raise UnreadableUnit("truncated", file.path, f"the file ends inside its pixels: {found}")
    if file.declared_bytes // size != header.frames:
        there = f"the pixel data holds {file.declared_bytes / size:g}"
        raise UnreadableUnit("frames", file.path, f"NumberOfFrames says {header.frames}, {there}")
    if bits == 8 and file.big_endian and file.vr == "OW":
        return _open_swapped(file.pixels[: file.declared_bytes], header)
    kind = np.dtype("iu"[not header.signed] + str(bits // 8)).newbyteorder(">" if file.big_endian else "<")
    pixels, shape = file.pixels, (header.rows, header.columns)
    return lambda i: np.frombuffer(pixels, kind, size // kind.itemsize, i * size).reshape(shape)


def _open_swapped(pixels: memoryview, header: VolumeHeader) -> ReadStored:
    """8-bit pixels in big-endian words: the second pixel of each pair is stored first (PS3.5, D.2)."""
    flat, size = np.frombuffer(pixels, np.uint8), header.rows * header.columns
    kind = np.int8 if header.signed else np.uint8

    def read(i: int) -> Pixels:
        at = np.arange(i * size, (i + 1) * size) ^ 1
        swapped: Pixels = flat[at].view(kind)
        return swapped.reshape(header.rows, header.columns)

    return read


def _lowest_bit(file: DicomFile, header: VolumeHeader) -> int:
    """The lowest stored bit of a pixel, where other bits may hold overlays; -1 where all bits are the pixel's: in a
    codestream, or where BitsStored is BitsAllocated."""
    allocated = read_count(file.dataset, "BitsAllocated") or 8
    is_plain = not file.is_encapsulated or file.syntax_uid == uid.RLELossless
    if not is_plain or header.bits_stored >= allocated:
        return -1
    high_bit = read_count(file.dataset, "HighBit")
    return min(max(0, (high_bit or 0) + 1 - header.bits_stored), allocated - header.bits_stored)


def _to_unsigned(stored: Pixels, bits_stored: int, lowest_bit: int, inverted: bool) -> np.ndarray:
    """Native byte order; other bits than the pixel's removed; half the range added to signed values."""
    kind = np.dtype(f"u{stored.dtype.itemsize}").type
    pixels: Pixels = stored.astype(stored.dtype.newbyteorder("="), copy=False).view(kind)
    limit = kind((1 << bits_stored) - 1)
    if lowest_bit > 0:
        pixels = pixels >> kind(lowest_bit)
    if stored.dtype.kind == "i":
        pixels = pixels + kind(1 << bits_stored - 1)  # wraps, as two's complement does
    if lowest_bit >= 0 or stored.dtype.kind == "i":
        pixels = pixels & limit
    return np.asarray(limit - np.minimum(pixels, limit)) if inverted else pixels
