"""Headers from the first bytes of a file: the same as from the whole file, and the pixels are not read."""

import numpy as np
import pytest
from pydicom import uid

from oct.dicom.header import read_header
from oct.indexing import head
from oct.indexing.head import read_file_header
from pathray.errors import MissingFile, UnreadableUnit
from pathray.wsi.backends.source import LocalFile
from tests.builders.oct.opt_dicom import Scan, build_dicom

UNSAID = (None, None, None)
VOLUME = np.random.default_rng(0).integers(0, 255, (40, 64, 96), np.uint8)  # 245,760 bytes


@pytest.fixture
def read_bytes(monkeypatch):
    """How many bytes were asked of files."""
    asked, read = [], LocalFile.read_many

    def count(self, ranges):
        asked.extend(size for _, size in ranges)
        return read(self, ranges)

    monkeypatch.setattr(LocalFile, "read_many", count)
    return asked


def write(tmp_path, scan=None, volume=VOLUME):
    path = tmp_path / "a.dcm"
    path.write_bytes(build_dicom(volume, scan))
    return str(path)


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("first", [256, 1 << 13, 1 << 18])
def test_the_header_is_that_of_the_whole_file_however_long_it_is(tmp_path, monkeypatch, syntax, first):
    monkeypatch.setattr(head, "FIRST_BYTES", first)
    path = write(tmp_path, Scan(syntax=syntax))
    whole = (tmp_path / "a.dcm").read_bytes()
    assert read_file_header(path, UNSAID) == (read_header(whole, path, UNSAID), len(whole))


def test_pixels_are_not_read(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(head, "FIRST_BYTES", 1 << 15)
    monkeypatch.setattr(head, "PIXEL_BYTES", 1 << 10)
    path = write(tmp_path, volume=np.tile(VOLUME, (1, 4, 4)))
    header, size = read_file_header(path, UNSAID)
    assert header.frames == 40 and size > 3_900_000
    assert sum(read_bytes) <= 1 << 18


def test_the_manifests_spacing_reaches_the_header(tmp_path):
    header, _ = read_file_header(write(tmp_path, Scan(measures="", places="")), (0.3, 0.004, None))
    assert header.geometry.spacing_mm[:2] == (0.3, 0.004)
    assert header.geometry.sources == ("manifest", "manifest", "assumed")


@pytest.mark.parametrize(("cut", "reason"), [(2_000, "truncated"), (243_000, "truncated")])
def test_a_file_that_is_smaller_than_its_pixels_is_refused(tmp_path, cut, reason):
    with pytest.raises(UnreadableUnit) as error:
        read_file_header(write(tmp_path, Scan(cut=cut + 40_000)), UNSAID)
    assert error.value.reason == reason


def test_missing_empty_and_other_files_are_told_apart(tmp_path):
    with pytest.raises(MissingFile):
        read_file_header(str(tmp_path / "gone.dcm"), UNSAID)
    for content, reason in ((b"", "empty"), (b"none" * 100, "not_dicom")):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(UnreadableUnit) as error:
            read_file_header(str(tmp_path / "a.dcm"), UNSAID)
        assert error.value.reason == reason


def test_the_headers_of_real_volumes_are_those_of_their_whole_files(shared_data, monkeypatch):
    monkeypatch.setattr(head, "FIRST_BYTES", 1 << 10)
    paths = sorted((shared_data / "oct/retinal_oct").rglob("*.dcm"))
    assert len(paths) == 16
    for path in paths:
        whole = path.read_bytes()
        assert read_file_header(str(path), UNSAID) == (read_header(whole, str(path), UNSAID), len(whole))
