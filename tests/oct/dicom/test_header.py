from __future__ import annotations

import numpy as np
import pytest
from pydicom import uid

from oct.dicom.header import read_header
from pathray.errors import UnreadableUnit
from tests.builders.oct.opt_dicom import EN_FACE, VOLUME_ANALYSIS, Scan, build_dicom
from tests.builders.oct.retina import layered_retina

SMALL = layered_retina(3, 12, 16)


def header_of(scan: Scan, volume: np.ndarray = SMALL):
    return read_header(build_dicom(volume, scan), "a.dcm")


def test_header_describes_the_volume():
    header = header_of(Scan(laterality="L"))
    assert (header.frames, header.rows, header.columns, header.bits_stored) == (3, 12, 16, 8)
    assert (header.manufacturer, header.model, header.laterality) == ("Generated", "Layered", "L")
    assert header.transfer_syntax_uid == uid.ExplicitVRLittleEndian
    assert header.sop_instance_uid.endswith(".9.1")
    assert (header.exclusion, header.notes, header.signed) == ("", (), False)


@pytest.mark.parametrize(
    ("scan", "word"),
    [
        (Scan(sop_class=EN_FACE), "en_face"),
        (Scan(sop_class=EN_FACE, modality="OPTENF"), "en_face"),
        (Scan(sop_class=VOLUME_ANALYSIS, modality="OPV"), "volume_analysis"),
        (Scan(sop_class=uid.SecondaryCaptureImageStorage), "other_sop_class"),
        (Scan(sop_class=uid.OphthalmicPhotography8BitImageStorage, modality="OP"), "wrong_modality"),
        (Scan(modality="OP"), "wrong_modality"),
        (Scan(places="locations", pattern="circular"), "circular"),
        (Scan(places="locations", pattern="closed"), "circular"),
        (Scan(places="locations", pattern="radial"), "radial"),
        (Scan(places="locations"), ""),
        (Scan(modality=""), ""),
    ],
)
def test_what_a_file_is_decides_whether_it_is_a_volume(scan: Scan, word: str):
    assert header_of(scan).exclusion == word


def test_a_single_frame_is_no_volume():
    assert header_of(Scan(), SMALL[:1]).exclusion == "single_frame"
    assert header_of(Scan(places="locations", pattern="circular"), SMALL[:1]).exclusion == "circular"


def test_frames_whose_rows_point_in_different_directions_are_radial():
    import pydicom

    content = build_dicom(SMALL, Scan())
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
    for i, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        plane, turn = pydicom.Dataset(), np.pi * i / 3
        plane.ImageOrientationPatient = [round(np.cos(turn), 9), 0.0, round(np.sin(turn), 9), 0.0, 1.0, 0.0]
        frame.PlaneOrientationSequence = [plane]
    stream = pydicom.filebase.DicomBytesIO()
    data.save_as(stream)
    assert read_header(stream.getvalue(), "a.dcm").exclusion == "radial"


@pytest.mark.parametrize(
    ("scan", "eye"),
    [
        (Scan(laterality=""), ""),
        (Scan(laterality="B"), ""),
        (Scan(laterality="", frame_laterality="L"), "L"),
        (Scan(laterality="", attributes={"Laterality": "R"}), "R"),
        (Scan(laterality="R", frame_laterality="L"), ""),
    ],
)
def test_laterality_is_never_a_default(scan: Scan, eye: str):
    header = header_of(scan)
    assert header.laterality == eye
    assert bool(header.notes) == (scan.laterality == "R" and scan.frame_laterality == "L")


def test_the_codestream_says_whether_pixels_are_signed():
    wrong = header_of(Scan(syntax=uid.JPEG2000Lossless, signed=True))
    assert not wrong.signed
    assert wrong.notes == ("PixelRepresentation says signed, the codestream unsigned: the codestream counts",)
    other = header_of(Scan(syntax=uid.HTJ2KLossless), (SMALL.astype(np.int16) - 128).astype(np.int16))
    assert other.signed and "the codestream signed" in other.notes[0]
    wide = header_of(Scan(syntax=uid.JPEG2000Lossless, attributes={"BitsAllocated": 16, "BitsStored": 16}))
    assert wide.bits_stored == 8 and "the codestream has 8 bits" in wide.notes[0]
    assert header_of(Scan(signed=True)).signed, "uncompressed: nothing else says it"
    assert header_of(Scan(syntax=uid.JPEG2000Lossless)).notes == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + b"\0" * 4000, "not_dicom"),
        (b"\0" * 128, "not_dicom"),
        (b"\0" * 128 + b"DICM", "truncated"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 64, "corrupt"),
    ],
)
def test_bytes_that_are_no_dicom_file_are_unreadable(content: bytes, reason: str):
    with pytest.raises(UnreadableUnit) as error:
        read_header(content, "gs://bucket/a.dcm")
    assert error.value.path == "gs://bucket/a.dcm"
    assert error.value.reason in (reason, "truncated")


@pytest.mark.filterwarnings("ignore")
def test_a_header_cut_anywhere_is_unreadable():
    """No cut gives another exception, and none gives a volume with less in its header."""
    content = build_dicom(SMALL, Scan())
    for size in range(len(content) - SMALL.nbytes):
        with pytest.raises(UnreadableUnit):
            read_header(content[:size], "a.dcm")


def test_a_header_does_not_need_the_pixels():
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        content = build_dicom(SMALL, Scan(syntax=syntax))
        assert read_header(content[: -SMALL.nbytes], "a.dcm") == read_header(content, "a.dcm")


@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": None},
        {"BitsAllocated": 32},
        {"BitsStored": 12},
        {"SamplesPerPixel": 3},
        {"NumberOfFrames": 0},
        {"NumberOfFrames": -2},
    ],
)
def test_pixels_that_cannot_be_described_are_unreadable(attributes: dict):
    with pytest.raises(UnreadableUnit, match="header") as error:
        header_of(Scan(attributes=attributes))
    assert next(iter(attributes)) in error.value.detail


def test_help_needs_no_pydicom():
    import subprocess
    import sys

    code = "import sys, oct.volume; sys.exit('pydicom' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
