"""Transcoding to HTJ2K: pixels as pydicom reads them, attributes, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import uid

from oct.dicom.file import open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.header import describe
from oct.transfer import transcode as module
from oct.transfer.transcode import differing_attributes, transcode
from pathray.errors import UnreadableUnit
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina

RETINA = layered_retina(4, 40, 56)


def pixels(data: bytes) -> np.ndarray:
    return pydicom.dcmread(BytesIO(data)).pixel_array


def frames(data: bytes) -> np.ndarray:
    file = open_dicom(data, "")
    return np.stack(list(iterate_frames(file, describe(file))))


def deep(bits: int, signed: bool = False) -> np.ndarray:
    """16-bit retinas that use `bits`."""
    wide = np.random.default_rng(0).integers(0, 1 << bits, RETINA.shape, np.uint16)
    return (wide.astype(np.int32) - (1 << bits - 1)).astype(np.int16) if signed else wide


CASES = {
    "raw": (RETINA, Scan()),
    "implicit": (RETINA, Scan(syntax=uid.ImplicitVRLittleEndian)),
    "deflated": (RETINA, Scan(syntax=uid.DeflatedExplicitVRLittleEndian)),
    "big endian": (deep(16), Scan(syntax=uid.ExplicitVRBigEndian)),
    "JPEG 2000": (RETINA, Scan(syntax=uid.JPEG2000Lossless, fragments=2)),
    "JPEG-LS": (deep(12), Scan(syntax=uid.JPEGLSLossless, bits_stored=12)),
    "RLE": (deep(16), Scan(syntax=uid.RLELossless)),
    "12 bits": (deep(12), Scan(bits_stored=12)),
    "signed": (deep(12, True), Scan(bits_stored=12, signed=True)),
    "inverted": (RETINA, Scan(attributes={"PhotometricInterpretation": "MONOCHROME1"})),
    "frames in another order": (RETINA, Scan(stored=[2, 0, 3, 1])),
    "no offset table": (RETINA, Scan(syntax=uid.JPEG2000Lossless, with_table=False)),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_equal_to_the_bit(name: str) -> None:
    volume, scan = CASES[name]
    data = build_dicom(volume, scan)
    result = transcode(data, "")
    read = pydicom.dcmread(BytesIO(result))
    assert read.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.201"
    np.testing.assert_array_equal(pixels(result), pixels(data))
    np.testing.assert_array_equal(frames(result), frames(data))
    before = pydicom.dcmread(BytesIO(data))
    assert read.SOPInstanceUID == before.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID
    own = {element.keyword for element in read} ^ {element.keyword for element in before}
    assert own == set() and read.PerFrameFunctionalGroupsSequence == before.PerFrameFunctionalGroupsSequence


def test_what_is_no_volume_is_refused() -> None:
    with pytest.raises(UnreadableUnit, match="single_frame"):
        transcode(build_dicom(RETINA[:1]), "")


def test_a_file_that_is_htj2k_is_not_touched() -> None:
    data = build_dicom(RETINA, Scan(syntax=uid.HTJ2KLossless))
    assert transcode(data, "") is data


def test_extended_offsets_of_the_source_are_dropped() -> None:
    data = build_dicom(RETINA, Scan(syntax=uid.JPEG2000Lossless, attributes={
        "ExtendedOffsetTable": bytes(32), "ExtendedOffsetTableLengths": bytes(32)}, with_table=False))  # fmt: skip
    read = pydicom.dcmread(BytesIO(transcode(data, "")))
    assert "ExtendedOffsetTable" not in read and read.pixel_array.shape == RETINA.shape


def test_a_pixel_that_changed_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._encode_frames

    def wrong(*args: object) -> list[bytes]:
        return real(*args)[:-1] + real(*args)[:1]  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_encode_frames", wrong)
    with pytest.raises(UnreadableUnit, match="frame 3 is not the same"):
        transcode(build_dicom(RETINA), "")


def test_an_attribute_that_changed_is_named() -> None:
    before, after = (pydicom.dcmread(BytesIO(build_dicom(RETINA))) for _ in range(2))
    assert differing_attributes(before, after) == []
    after.Manufacturer = "Other"
    del after.Modality
    after.BitsStored = 7
    assert differing_attributes(before, after) == ["(0008,0060)", "(0008,0070)"]


@pytest.mark.parametrize(("scan", "reason"), [(Scan(cut=500), "truncated"), (Scan(stated_frames=9), "frames")])
def test_a_damaged_volume_is_refused(scan: Scan, reason: str) -> None:
    with pytest.raises(UnreadableUnit, match=reason):
        transcode(build_dicom(RETINA, scan), "")


def test_bits_are_the_codestreams_where_the_header_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codestream of 12 bits in a file that says 16: greys keep their share of the range."""
    import imagecodecs

    def encode(frame: np.ndarray, syntax: str) -> bytes:
        how = {"level": 0, "codecformat": "j2k", "reversible": True, "bitspersample": 12}
        return bytes(imagecodecs.jpeg2k_encode(frame, **how))

    monkeypatch.setattr("tests.builders.oct.opt_dicom.encode_frame", encode)
    data = build_dicom(deep(12), Scan(syntax=uid.JPEG2000Lossless))
    result = transcode(data, "")
    np.testing.assert_array_equal(frames(result), deep(12))
    assert [describe(open_dicom(one, "")).bits_stored for one in (data, result)] == [12, 12]
