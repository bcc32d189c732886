from __future__ import annotations

import warnings
from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import uid

from oct.dicom.file import open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.header import describe
from pathray.errors import UnreadableUnit
from tests.builders.oct.opt_dicom import PLAIN, Scan, build_dicom
from tests.builders.oct.retina import layered_retina

EIGHT = layered_retina(4, 15, 17)  # 255 pixels a frame: odd
SIXTEEN = layered_retina(4, 15, 17, bits=16)
TWELVE = layered_retina(4, 15, 17, bits=12)
LOSSLESS = (
    *PLAIN,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
    uid.JPEGLSLossless,
    uid.JPEGLosslessSV1,
)
COMPRESSED = (uid.RLELossless, uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.JPEGLSLossless)
SHUFFLED = (2, 0, 3, 1)


def decode(content: bytes) -> np.ndarray:
    file = open_dicom(content, "a.dcm")
    return np.stack(list(iterate_frames(file, describe(file))))


def reason_of(content: bytes) -> str:
    with pytest.raises(UnreadableUnit) as error:
        decode(content)
    return error.value.reason


def pydicoms(content: bytes) -> np.ndarray:
    return np.asarray(pydicom.dcmread(BytesIO(content)).pixel_array)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
@pytest.mark.parametrize("volume", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
def test_every_transfer_syntax_decodes_to_what_was_encoded(volume: np.ndarray, syntax: uid.UID):
    frames = decode(build_dicom(volume, Scan(syntax=syntax)))
    assert frames.dtype == volume.dtype and frames.dtype.isnative
    np.testing.assert_array_equal(frames, volume)


@pytest.mark.parametrize("syntax", [*PLAIN, *COMPRESSED], ids=lambda s: s.name)
@pytest.mark.parametrize("volume", [EIGHT, SIXTEEN, TWELVE], ids=["8 bit", "16 bit", "12 bit"])
def test_frames_are_those_of_pydicom(volume: np.ndarray, syntax: uid.UID):
    content = build_dicom(volume, Scan(syntax=syntax, bits_stored=12 if volume is TWELVE else None))
    np.testing.assert_array_equal(decode(content), pydicoms(content))


def test_lossy_jpeg_decodes():
    frames = decode(build_dicom(EIGHT, Scan(syntax=uid.JPEGBaseline8Bit)))
    assert np.abs(frames.astype(int) - EIGHT).mean() < 5


@pytest.mark.parametrize("syntax", [uid.ExplicitVRBigEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_8_bit_words_are_unswapped(syntax: uid.UID, vr: str):
    """Three frames of 255 pixels: words of two pixels reach over the ends of frames."""
    content = build_dicom(EIGHT[:3], Scan(syntax=syntax, vr=vr))
    np.testing.assert_array_equal(decode(content), EIGHT[:3])


def test_big_endian_frames_are_native():
    import torch

    file = open_dicom(build_dicom(SIXTEEN, Scan(syntax=uid.ExplicitVRBigEndian)), "a.dcm")
    frame = next(iterate_frames(file, describe(file)))
    assert torch.from_numpy(frame.astype(np.int32)).sum() == int(SIXTEEN[0].sum(dtype=np.int64))
    assert frame.dtype.isnative


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless])
def test_frames_come_in_the_order_of_the_slow_axis(syntax: uid.UID):
    content = build_dicom(EIGHT, Scan(syntax=syntax, stored=SHUFFLED))
    assert not np.array_equal(pydicoms(content), EIGHT)
    np.testing.assert_array_equal(decode(content), EIGHT)


@pytest.mark.parametrize("stated", [None, 1])
def test_several_frames_are_never_taken_for_a_single_one(stated: int | None):
    content = build_dicom(EIGHT, Scan(attributes={"NumberOfFrames": stated}))
    if stated:
        assert reason_of(content) == "frames"
    else:
        np.testing.assert_array_equal(decode(content), EIGHT)


def test_a_part_of_the_frames_can_be_read():
    file = open_dicom(build_dicom(EIGHT, Scan(stored=SHUFFLED)), "a.dcm")
    np.testing.assert_array_equal(np.stack(list(iterate_frames(file, describe(file), 1, 3))), EIGHT[1:3])


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *COMPRESSED, uid.DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("stated", [3, 5, 2, 8])
@pytest.mark.parametrize("with_table", [True, False])
def test_a_wrong_number_of_frames_is_unreadable(syntax: uid.UID, stated: int, with_table: bool):
    content = build_dicom(EIGHT, Scan(syntax=syntax, stated_frames=stated, with_table=with_table))
    file = open_dicom(content, "a.dcm")
    with pytest.raises(UnreadableUnit, match="frames"):
        iterate_frames(file, describe(file))  # at the call: an iterator that ends early would go unseen


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("with_table", [True, False])
def test_frames_in_several_fragments_decode(syntax: uid.UID, fragments: int, with_table: bool):
    scan = Scan(syntax=syntax, fragments=fragments, with_table=with_table)
    np.testing.assert_array_equal(decode(build_dicom(EIGHT, scan)), EIGHT)


def test_one_frame_in_several_fragments_without_a_table_decodes():
    scan = Scan(syntax=uid.JPEG2000Lossless, fragments=3, with_table=False)
    np.testing.assert_array_equal(decode(build_dicom(EIGHT[:1], scan)), EIGHT[:1])


@pytest.mark.parametrize("volume", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("padding", [b"\0", b"\0\0", b"\0\0\0", b"\x80", b"\x80\0"])
def test_padding_after_rle_segments_does_not_matter(volume: np.ndarray, padding: bytes):
    content = build_dicom(volume, Scan(syntax=uid.RLELossless, padding=padding))
    np.testing.assert_array_equal(decode(content), volume)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.JPEGLSLossless])
def test_padding_after_a_codestream_does_not_matter(syntax: uid.UID):
    np.testing.assert_array_equal(decode(build_dicom(EIGHT, Scan(syntax=syntax, padding=b"\0\0\0"))), EIGHT)


@pytest.mark.parametrize("syntax", [*PLAIN, *COMPRESSED], ids=lambda s: s.name)
@pytest.mark.parametrize("cut", [9, 40, 300])
def test_a_truncated_file_is_unreadable(syntax: uid.UID, cut: int):
    reason = reason_of(build_dicom(EIGHT, Scan(syntax=syntax, cut=cut)))
    assert reason == "truncated"


def test_a_missing_delimiter_after_all_frames_does_not_matter():
    np.testing.assert_array_equal(decode(build_dicom(EIGHT, Scan(syntax=uid.RLELossless, cut=8))), EIGHT)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
def test_a_truncated_codestream_is_unreadable(syntax: uid.UID, monkeypatch: pytest.MonkeyPatch):
    """OpenJPH returns a cut HTJ2K frame with zeros for what is missing."""
    from tests.builders.oct import opt_dicom
    from tests.builders.oct.codecs import encode_frame

    monkeypatch.setattr(opt_dicom, "encode_frame", lambda frame, s: encode_frame(frame, s)[:-40])
    assert reason_of(build_dicom(EIGHT, Scan(syntax=syntax))) in ("truncated", "decode")


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
def test_a_damaged_codestream_is_unreadable_and_nothing_else(syntax: uid.UID, monkeypatch: pytest.MonkeyPatch):
    from tests.builders.oct import opt_dicom

    monkeypatch.setattr(opt_dicom, "encode_frame", lambda frame, s: b"\x01\x02\x03\x04" * 40)
    assert reason_of(build_dicom(EIGHT, Scan(syntax=syntax))) in ("truncated", "decode", "corrupt")


def test_a_frame_of_another_size_is_unreadable():
    content = build_dicom(EIGHT, Scan(syntax=uid.JPEG2000Lossless, attributes={"Rows": 16}))
    assert reason_of(content) == "decode"


def test_an_unknown_transfer_syntax_is_named():
    content = build_dicom(EIGHT, Scan(syntax=uid.JPEG2000Lossless))
    content = content.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.92")
    assert reason_of(content) == "unsupported"


def test_a_sign_that_the_codestream_denies_changes_no_pixel():
    """Read as signed, greys above 127 would wrap."""
    for volume in (EIGHT, SIXTEEN):
        content = build_dicom(volume, Scan(syntax=uid.JPEG2000Lossless, signed=True))
        np.testing.assert_array_equal(decode(content), volume)


def test_a_header_without_pixels_does_not_bring_the_denied_sign_back():
    """Read from a part of the file, a header knows PixelRepresentation only."""
    file = open_dicom(build_dicom(EIGHT, Scan(syntax=uid.JPEG2000Lossless, signed=True)), "a.dcm")
    header = replace(describe(file), signed=True)
    np.testing.assert_array_equal(np.stack(list(iterate_frames(file, header))), EIGHT)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *COMPRESSED], ids=lambda s: s.name)
@pytest.mark.parametrize("bits", [8, 16])
def test_signed_pixels_keep_their_order(syntax: uid.UID, bits: int):
    half = 1 << bits - 1
    volume = ((EIGHT if bits == 8 else SIXTEEN).astype(np.int64) - half).astype(f"i{bits // 8}")
    if syntax == uid.JPEGLSLossless:
        volume = volume.view(f"u{bits // 8}")  # its codestream knows no sign
    frames = decode(build_dicom(volume, Scan(syntax=syntax, signed=True)))
    np.testing.assert_array_equal(frames, EIGHT if bits == 8 else SIXTEEN)


def test_bits_above_the_stored_ones_are_removed():
    overlay = TWELVE | np.uint16(0x5000)
    np.testing.assert_array_equal(decode(build_dicom(overlay, Scan(bits_stored=12))), TWELVE)
    high = (TWELVE << 4) | np.uint16(7)
    content = build_dicom(high, Scan(bits_stored=12, attributes={"HighBit": 15}))
    np.testing.assert_array_equal(decode(content), TWELVE)


def test_monochrome1_is_inverted():
    content = build_dicom(EIGHT, Scan(attributes={"PhotometricInterpretation": "MONOCHROME1"}))
    np.testing.assert_array_equal(decode(content), 255 - EIGHT.astype(int))
    assert describe(open_dicom(content, "a.dcm")).notes


def test_an_uncompressed_file_is_not_copied():
    content = build_dicom(EIGHT, Scan())
    file = open_dicom(content, "a.dcm")
    frame = next(iterate_frames(file, describe(file)))
    assert np.shares_memory(frame, np.frombuffer(content, np.uint8))
    assert file.pixels is not None and file.pixels.obj is content


def test_real_frames_are_those_of_pydicom(shared_data):
    files = sorted((shared_data / "oct/retinal_oct/structural_oct").rglob("*.dcm"))
    assert len(files) == 16
    for path in files:
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pydicoms(content)
        frames = decode(content)
        assert frames.dtype == expected.dtype
        np.testing.assert_array_equal(frames, expected.reshape(frames.shape))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_htj2k_frame_is_never_black(monkeypatch: pytest.MonkeyPatch):
    """The codec keeps errors inside a frame to itself, and leaves the rows after it black."""
    import imagecodecs

    from oct.dicom.codecs import decode_frame
    from tests.builders.oct.codecs import encode_frame

    monkeypatch.setattr("sys.unraisablehook", lambda error: None)
    frame, black = layered_retina(1, 64, 48)[0], 0
    coded = encode_frame(frame, uid.HTJ2KLossless)
    for at in range(110, len(coded) - 5, 61):
        damaged = coded[:at] + b"\xff\xff\xff" + coded[at + 3 :]
        if imagecodecs.htj2k_decode(damaged).any():
            continue
        black += 1
        with pytest.raises(UnreadableUnit, match="decode"):
            decode_frame(uid.HTJ2KLossless, damaged, (64, 48), 8, "a.dcm", 0)
    assert black > 5, "else this test shows nothing"


def test_a_black_htj2k_frame_decodes():
    volume = np.zeros_like(EIGHT)
    np.testing.assert_array_equal(decode(build_dicom(volume, Scan(syntax=uid.HTJ2KLossless))), volume)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.HTJ2KLossless])
def test_a_codestream_that_asks_for_any_memory_is_not_decoded(syntax: uid.UID):
    from oct.dicom.codecs import decode_frame
    from tests.builders.oct.codecs import encode_frame

    coded = bytearray(encode_frame(EIGHT[0], syntax))
    coded[8:16] = (1 << 31).to_bytes(4, "big") * 2  # Xsiz and Ysiz
    with pytest.raises(UnreadableUnit, match="size of the codestream"):
        decode_frame(syntax, bytes(coded), EIGHT[0].shape, 8, "a.dcm", 0)


@pytest.mark.parametrize("place", ["oct.dicom.file.dcmread", "oct.dicom.codecs.DECODERS"])
def test_lack_of_memory_is_no_damage_of_the_file(place, monkeypatch):
    """It would be quarantined, and out of memory would not be seen."""

    def no_room(*_, **__):
        raise MemoryError("no room")

    data = build_dicom(layered_retina(2, 16, 16), Scan(syntax=uid.RLELossless))
    monkeypatch.setattr(place, no_room if place.endswith("dcmread") else {uid.RLELossless: no_room})
    with pytest.raises(MemoryError, match="no room"):
        file = open_dicom(data, "a.dcm")
        list(iterate_frames(file, describe(file)))
