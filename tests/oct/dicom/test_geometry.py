"""The generated scans have dz .05, dy .004 and dx .012 mm unless a test says otherwise."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest

from oct.dicom.header import read_header
from oct.volume import Geometry, VolumeHeader
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina

VOLUME = layered_retina(6, 10, 14)
SHUFFLED = (3, 0, 5, 1, 4, 2)
BACK = tuple(int(i) for i in np.argsort(SHUFFLED))  # the file's frame at each place of the slow axis


def geometry_of(scan: Scan, manifest=None, change=None) -> Geometry:
    return header_of(scan, manifest, change).geometry


def header_of(scan: Scan, manifest=None, change=None) -> VolumeHeader:
    content = build_dicom(VOLUME, scan)
    if change:
        data = pydicom.dcmread(BytesIO(content))
        change(data)
        stream = BytesIO()
        with pydicom.config.disable_value_validation():
            data.save_as(stream)
        content = stream.getvalue()
    return read_header(content, "a.dcm", manifest)


@pytest.mark.parametrize("measures", ["shared", "frame", "root"])
def test_pixel_spacing_is_rows_then_columns(measures: str):
    geometry = geometry_of(Scan(measures=measures))
    assert geometry.spacing_mm == pytest.approx((0.05, 0.004, 0.012), abs=1e-9)
    source = {"shared": "shared_measures", "frame": "frame_measures", "root": "root"}[measures]
    assert geometry.sources == ("positions", source, source)
    assert geometry.offsets_mm is None and geometry.notes == ()


def test_spacing_in_shared_groups_is_read():
    geometry = geometry_of(Scan(measures="shared", places=""))
    assert geometry.spacing_mm[1:] == (0.004, 0.012)


def test_frame_measures_come_before_shared_before_root_before_manifest():
    def add_frame(data: pydicom.Dataset) -> None:
        for group in data.PerFrameFunctionalGroupsSequence:
            measures = pydicom.Dataset()
            measures.PixelSpacing = [0.002, 0.006]
            group.PixelMeasuresSequence = [measures]

    root, manifest = {"PixelSpacing": [0.1, 0.2]}, (0.3, 0.4, 0.5)
    both = geometry_of(Scan(attributes=root), manifest, add_frame)
    assert both.spacing_mm[1:] == (0.002, 0.006) and both.sources[1] == "frame_measures"
    shared = geometry_of(Scan(attributes=root), manifest)
    assert shared.spacing_mm[1:] == (0.004, 0.012) and shared.sources[1] == "shared_measures"
    only_root = geometry_of(Scan(attributes=root, measures=""), manifest)
    assert only_root.spacing_mm[1:] == (0.1, 0.2) and only_root.sources[1] == "root"


def test_a_manifest_says_what_the_file_does_not():
    geometry = geometry_of(Scan(measures="", places=""), (0.067, 0.003, None))
    assert geometry.spacing_mm == (0.067, 0.003, 1.0)
    assert geometry.sources == ("manifest", "manifest", "assumed")
    assert geometry_of(Scan(), (0.9, 0.9, 0.9)).sources == ("positions", "shared_measures", "shared_measures")


def test_what_nothing_says_is_recorded_as_assumed():
    geometry = geometry_of(Scan(measures="", places=""))
    assert geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert geometry.sources == ("assumed", "assumed", "assumed")


def test_frames_are_sorted_by_position_and_not_by_file_order():
    geometry = geometry_of(Scan(stored=SHUFFLED))
    assert geometry.order == BACK
    assert geometry.spacing_mm[0] == pytest.approx(0.05)


def test_frames_are_sorted_along_the_normal_where_it_points_back():
    """The normal is row × column: with columns upwards it points to -z, and so do the frames."""
    geometry = geometry_of(Scan(stored=SHUFFLED, reversed_normal=True))
    assert geometry.order == BACK
    assert geometry.spacing_mm[0] == pytest.approx(0.05)


def test_dz_comes_from_positions_and_not_from_thickness():
    geometry = geometry_of(Scan(attributes={"SliceThickness": 0.9, "SpacingBetweenSlices": 0.7}))
    assert geometry.spacing_mm[0] == pytest.approx(0.05) and geometry.sources[0] == "positions"
    assert geometry_of(Scan(places="", attributes={"SliceThickness": 0.9})).sources[0] == "assumed"


@pytest.mark.parametrize("where", ["shared", "root"])
def test_spacing_between_slices_gives_dz_where_positions_do_not(where: str):
    geometry = geometry_of(Scan(places="", between_slices=where))
    assert (geometry.spacing_mm[0], geometry.sources[0]) == (0.05, "between_slices")
    assert geometry_of(Scan(between_slices=where)).sources[0] == "positions"


def test_irregular_gaps_keep_their_true_offsets():
    offsets = [0, 0.05, 0.1, 0.3, 0.35, 0.4]
    geometry = geometry_of(Scan(offsets_mm=offsets, stored=SHUFFLED))
    assert geometry.order == BACK
    assert geometry.offsets_mm == pytest.approx(offsets)
    assert geometry.spacing_mm[0] == pytest.approx(0.4 / 5)
    assert any("not evenly spaced" in note for note in geometry.notes)


def test_rounded_positions_are_evenly_spaced():
    assert geometry_of(Scan(offsets_mm=[0, 0.0501, 0.1, 0.1499, 0.2, 0.25])).offsets_mm is None


@pytest.mark.parametrize("stored", [None, SHUFFLED])
def test_scan_lines_in_the_fundus_image_give_order_and_dz(stored):
    """A line of 14 A-scans, .012 mm apart, is 400 pixels long: the fundus image has .00042 mm a pixel."""
    geometry = geometry_of(Scan(places="locations", stored=stored))
    assert geometry.order == (BACK if stored else tuple(range(6)))
    assert geometry.spacing_mm[0] == pytest.approx(0.05, rel=1e-5)
    assert geometry.sources[0] == "positions"


def test_scan_lines_without_dx_give_the_order_only():
    geometry = geometry_of(Scan(places="locations", measures="", stored=SHUFFLED))
    assert geometry.order == BACK
    assert (geometry.spacing_mm[0], geometry.sources[0]) == (1.0, "assumed")


def test_vertical_and_serpentine_scan_lines_are_sorted_to_the_right():
    def turn(data: pydicom.Dataset) -> None:
        for i, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            location = group.OphthalmicFrameLocationSequence[0]
            row1, column1, row2, column2 = location.ReferenceCoordinates
            line = [[column1, row1], [column2, row2]]
            location.ReferenceCoordinates = sum(line[:: -1 if i % 2 else 1], [])

    geometry = geometry_of(Scan(places="locations", stored=SHUFFLED), change=turn)
    assert geometry.order == BACK
    assert geometry.spacing_mm[0] == pytest.approx(0.05, rel=1e-5)


def test_scan_lines_of_zeros_say_nothing():
    def clear(data: pydicom.Dataset) -> None:
        for group in data.PerFrameFunctionalGroupsSequence:
            group.OphthalmicFrameLocationSequence[0].ReferenceCoordinates = [0.0] * 4

    header = header_of(Scan(places="locations"), change=clear)
    assert header.exclusion == "" and header.geometry.sources[0] == "assumed"


def test_in_stack_positions_order_frames_without_positions():
    def number(data: pydicom.Dataset) -> None:
        for place, group in zip(SHUFFLED, data.PerFrameFunctionalGroupsSequence, strict=True):
            group.FrameContentSequence[0].InStackPositionNumber = place + 1

    assert geometry_of(Scan(places="", stored=SHUFFLED), change=number).order == BACK
    assert geometry_of(Scan(places="", stored=SHUFFLED)).order == tuple(range(6))


@pytest.mark.parametrize("value", [[0, 0.012], [-0.004, 0.012], ["NaN", 0.012], ["Infinity", "0.012"]])
def test_a_spacing_that_is_no_length_is_not_taken(value):
    def put(data: pydicom.Dataset) -> None:
        measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        raw = "\\".join(str(v) for v in value)
        measures[0x00280030] = pydicom.dataelem.RawDataElement(
            pydicom.tag.BaseTag(0x00280030), "DS", len(raw), raw.encode(), 0, False, True
        )

    geometry = geometry_of(Scan(attributes={"PixelSpacing": [0.003, 0.02]}), change=put)
    assert geometry.spacing_mm[1:] == (0.003, 0.012)
    assert geometry.sources[1:] == ("root", "shared_measures")
    assert any("no spacing of y" in note for note in geometry.notes)


@pytest.mark.parametrize("value", [[0.004], [0.004, 0.012, 0.05]])
def test_a_pixel_spacing_that_is_not_two_numbers_is_not_taken(value):
    def put(data: pydicom.Dataset) -> None:
        data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = value

    geometry = geometry_of(Scan(), change=put)
    assert geometry.sources[1:] == ("assumed", "assumed")
    assert any("not 2" in note for note in geometry.notes)


def test_a_manifest_spacing_of_zero_is_not_taken():
    geometry = geometry_of(Scan(measures="", places=""), (0.0, float("nan"), -1.0))
    assert geometry.sources == ("assumed", "assumed", "assumed")
    assert len(geometry.notes) == 4, "three values, and no positions"


def test_frames_at_one_position_give_no_dz():
    geometry = geometry_of(Scan(offsets_mm=[0.0] * 6))
    assert geometry.sources[0] == "assumed" and geometry.order == tuple(range(6))
    assert any("share" in note for note in geometry.notes)


def test_positions_without_orientation_are_sorted_along_their_line():
    def drop(data: pydicom.Dataset) -> None:
        del data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence

    geometry = geometry_of(Scan(stored=SHUFFLED), change=drop)
    assert geometry.order == BACK and geometry.spacing_mm[0] == pytest.approx(0.05)
    assert any("ImageOrientationPatient" in note for note in geometry.notes)


def test_groups_that_are_not_one_per_frame_are_not_used():
    def drop(data: pydicom.Dataset) -> None:
        del data.PerFrameFunctionalGroupsSequence[2]

    geometry = geometry_of(Scan(), change=drop)
    assert geometry.order == tuple(range(6)) and geometry.sources[0] == "assumed"
    assert "5 per-frame functional groups for 6 frames: not used" in geometry.notes


def test_spacings_that_vary_between_frames_are_noted():
    def vary(data: pydicom.Dataset) -> None:
        for i, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            group.PixelMeasuresSequence[0].PixelSpacing = [0.004, 0.012 if i else 0.018]

    geometry = geometry_of(Scan(measures="frame"), change=vary)
    assert geometry.spacing_mm[1:] == (0.004, 0.012)
    assert any("spacing of x varies" in note for note in geometry.notes)
