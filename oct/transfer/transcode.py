"""A DICOM volume → the same volume as lossless HTJ2K (1.2.840.10008.1.2.4.201), checked pixel by pixel.

Lossless transcoding keeps the SOP instance UID, and all attributes but those that describe how pixels are stored. The
result is decoded again and compared with the source before anybody sees it. Not here: files (oct.transfer.prepare).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL

from oct.dicom.file import open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.header import describe
from oct.volume import VolumeHeader
from pathray.errors import UnreadableUnit

ALREADY = (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)  # decoded as fast: copied as they are
OFFSET_TABLES = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength")
PIXELS = (*OFFSET_TABLES, "PixelData", "BitsStored", "HighBit", "PixelRepresentation")
MOST_BYTES = 2**32 - 2**16  # a basic offset table has 32 bits


def transcode(data: bytes, path: str) -> bytes:
    """The file with content `data` as HTJ2K; `data` itself if it is HTJ2K already. `path` is for messages.

    Frames are encoded and compared one at a time. UnreadableUnit: what reading raises, the exclusion of a file that is
    no volume, or `transcode` if the result is not the same.
    """
    source = open_dicom(data, path)
    header = describe(source)
    if header.exclusion:
        raise UnreadableUnit(header.exclusion, path, "the file is not a volume")
    if source.syntax_uid in ALREADY:
        return data
    result = _write(data, _encode_frames(data, path, header), header)
    _compare(data, result, path)
    return result


def _encode_frames(data: bytes, path: str, header: VolumeHeader) -> list[bytes]:
    """A codestream per frame, in stored order. What is encoded is what a reader sees: unsigned, and MONOCHROME1 not
    inverted."""
    from imagecodecs import htj2k_encode

    source = open_dicom(data, path)
    inverted = str(source.dataset.get("PhotometricInterpretation", "")).strip().upper() == "MONOCHROME1"
    limit, offset = (1 << header.bits_stored) - 1, 1 << header.bits_stored - 1
    coded: list[bytes] = [b""] * header.frames
    for number, frame in zip(header.geometry.order, iterate_frames(source, header), strict=True):
        pixels: Any = limit - frame if inverted else frame
        if header.signed:
            pixels = (pixels.astype(np.int32) - offset).astype(f"i{frame.itemsize}")
        coded[number] = bytes(htj2k_encode(np.ascontiguousarray(pixels, pixels.dtype), reversible=True))
    return coded


def _write(data: bytes, frames: list[bytes], header: VolumeHeader) -> bytes:
    dataset = dcmread(BytesIO(data))
    for keyword in OFFSET_TABLES:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.BitsStored, dataset.HighBit = header.bits_stored, header.bits_stored - 1
    dataset.PixelRepresentation = int(header.signed)
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = encapsulate(frames, has_bot=sum(map(len, frames)) + 16 * len(frames) < MOST_BYTES)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    stream = BytesIO()
    is_big = dataset.original_encoding[1] is False
    how = {"force_encoding": True} if is_big else {"enforce_file_format": True}  # pydicom converts only when forced
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True, **how)
    return stream.getvalue()


def _compare(data: bytes, result: bytes, path: str) -> None:
    """UnreadableUnit `transcode` unless attributes, geometry and all pixels are equal."""
    before, after = open_dicom(data, path), open_dicom(result, path)
    first, second = describe(before), describe(after)
    if differing := differing_attributes(dcmread(BytesIO(data)), dcmread(BytesIO(result))):
        raise UnreadableUnit("transcode", path, f"attributes changed: {', '.join(differing[:5])}")
    if (first.geometry, first.bits_stored) != (second.geometry, second.bits_stored):
        raise UnreadableUnit("transcode", path, "geometry or bits changed")
    pairs = zip(iterate_frames(before, first), iterate_frames(after, second), strict=True)
    for number, (old, new) in enumerate(pairs):
        if old.shape != new.shape or not np.array_equal(old, new):
            raise UnreadableUnit("transcode", path, f"frame {number} is not the same")


def differing_attributes(before: Dataset, after: Dataset) -> list[str]:
    """Names of root attributes that are not equal, without those that say how pixels are stored."""
    own = {element.tag for d in (before, after) for element in map(d.get_item, d.keys()) if element is not None}
    return [
        str(tag) for tag in sorted(own) if _keyword(tag) not in PIXELS and before.get(tag, None) != after.get(tag, None)
    ]


def _keyword(tag: Any) -> str:
    from pydicom.datadict import keyword_for_tag

    return str(keyword_for_tag(tag))
