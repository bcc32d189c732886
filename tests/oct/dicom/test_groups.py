"""Functional groups as parsed here against pydicom, on sound files and on damaged ones."""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from oct.dicom import groups
from oct.dicom.groups import PER_FRAME, SHARED
from tests.builders.oct.opt_dicom import Scan, build_dicom

VOLUME = np.zeros((3, 4, 6), np.uint8)
SCANS = {
    "positions": Scan(frame_laterality="L"),
    "scan lines": Scan(places="locations", measures="frame", between_slices="shared"),
    "circle": Scan(places="locations", pattern="circular"),
    "implicit": Scan(syntax=uid.ImplicitVRLittleEndian, measures="frame", frame_laterality="R"),
    "big endian": Scan(syntax=uid.ExplicitVRBigEndian, places="locations", measures="frame"),
}


def header_of(scan: Scan, change=None) -> Dataset:
    """The data set as the reader has it: not yet converted."""
    data = pydicom.dcmread(BytesIO(build_dicom(VOLUME, scan)))
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].InStackPositionNumber = 9 - number
        if change:
            change(group)
    stream = BytesIO()
    data.save_as(stream)
    stream.seek(0)
    return pydicom.dcmread(stream, stop_before_pixels=True)


def by_pydicom(dataset: Dataset, monkeypatch) -> tuple[list[groups.Group], list[groups.Group]]:
    def refuse(*_) -> list[groups.Group]:
        raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(groups, "parse_groups", refuse)
        return groups.read_groups(dataset, SHARED), groups.read_groups(dataset, PER_FRAME)


@pytest.mark.parametrize("name", SCANS)
def test_groups_are_parsed_as_pydicom_reads_them(name: str, monkeypatch):
    dataset = header_of(SCANS[name])
    raw = dataset.get_item(PER_FRAME)
    order = "<" if raw.is_little_endian else ">"
    parsed = groups.parse_groups(raw.value, raw.is_implicit_VR, order)
    own = groups.read_groups(dataset, SHARED), groups.read_groups(dataset, PER_FRAME)
    assert len(parsed) == 3 and parsed == own[1]
    assert [group.number for group in parsed] == [9, 8, 7]
    assert own == by_pydicom(dataset, monkeypatch)


@pytest.mark.parametrize("name", SCANS)
def test_damaged_groups_are_read_as_pydicom_reads_them(name: str, monkeypatch):
    g, seen = np.random.default_rng(0), 0
    clean = header_of(SCANS[name]).get_item(PER_FRAME)
    for _ in range(150):
        value = bytearray(clean.value)
        for _ in range(g.integers(1, 3)):
            value[g.integers(len(value))] = g.choice([0, 1, 2, 4, 8, 32, 65, 92, 255, int(g.integers(256))])
        own, other = ({PER_FRAME: clean._replace(value=bytes(value))} for _ in range(2))
        found = groups.read_groups(Dataset(own), PER_FRAME)
        seen += found != groups.parse_groups(clean.value, clean.is_implicit_VR, "<" if clean.is_little_endian else ">")
        assert repr(found) == repr(by_pydicom(Dataset(other), monkeypatch)[1]), bytes(value)
    assert seen > 20  # the damage is not only where nobody looks


def several_items(group: Dataset) -> None:
    group.PlanePositionSequence = Sequence([group.PlanePositionSequence[0], Dataset()])


def undefined_length(group: Dataset) -> None:
    group["PlanePositionSequence"].is_undefined_length = True


@pytest.mark.parametrize("change", [several_items, undefined_length])
def test_unusual_groups_are_left_to_pydicom(change, monkeypatch):
    dataset = header_of(SCANS["positions"], change)
    raw = dataset.get_item(PER_FRAME)
    with pytest.raises((groups.Unusual, ValueError)):
        groups.parse_groups(raw.value, raw.is_implicit_VR, "<")
    found = groups.read_groups(dataset, PER_FRAME)
    assert [group.position for group in found] == [(-3.0, 1.5, 0.0), (-3.0, 1.5, 0.05), (-3.0, 1.5, 0.1)]
    assert found == by_pydicom(dataset, monkeypatch)[1]
