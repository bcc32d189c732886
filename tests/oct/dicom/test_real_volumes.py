"""The 16 real files: what each header says, as read with pydicom by hand. B-scans of 3001 are 2 mm deep, 6 mm wide."""

from __future__ import annotations

import ast
import csv
import math
import warnings
from pathlib import Path

import pydicom
import pytest

from oct.dicom.header import read_header
from oct.dicom.resample import read_volume
from oct.volume import Grid

BIOPTIGEN = (0.067, 0.00323, 0.0067)
P, S, F, A = "positions", "shared_measures", "frame_measures", "assumed"
EXPECTED = {  # person → (dz, dy, dx), sources, exclusion
    **{p: (BIOPTIGEN, (P, S, S), "") for p in "2001 2002 2003 2005 2009 2010 2011 2012".split()},
    **{p: (BIOPTIGEN, (P, F, F), "") for p in ("2007", "2013")},
    **{p: ((0.067, 1.0, 1.0), (P, A, A), "") for p in ("2008", "2016")},
    "3001": ((0.046875, 0.00195312, 0.0117188), (P, S, S), ""),
    "1001": ((1.0, 0.00387167, 0.0118206), (A, F, F), "single_frame"),
    "1002": ((1.0, 0.00387167, 0.014722), (A, S, S), "single_frame"),
    "1003": ((1.0, 0.00387167, 0.017891), (A, S, S), "single_frame"),
}


@pytest.fixture(scope="module")
def files(shared_data: Path) -> dict[str, Path]:
    found = (shared_data / "oct/retinal_oct/structural_oct").rglob("*.dcm")
    return {path.parent.name: path for path in found}


def test_spacing_and_source_of_every_real_file(files: dict[str, Path]):
    assert sorted(files) == sorted(EXPECTED)
    for person, (spacing, sources, exclusion) in EXPECTED.items():
        header = read_header(files[person].read_bytes(), person)
        assert header.geometry.spacing_mm == pytest.approx(spacing, rel=1e-6), person
        assert header.geometry.sources == sources, person
        assert header.geometry.offsets_mm is None and header.exclusion == exclusion, person
        assert header.geometry.order == tuple(range(header.frames)), person
    assert sum(not exclusion for _, _, exclusion in EXPECTED.values()) == 13


def test_headers_agree_with_the_manifest_where_it_says_something(files: dict[str, Path], shared_data: Path):
    with open(shared_data / "oct/retinal_oct/manifest.tsv", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert len(rows) == 16
    for row in rows:
        header = read_header(files[row["person_id"]].read_bytes(), "x")
        assert (header.frames, header.rows, header.columns) == tuple(
            int(row[k]) for k in ("number_of_frames", "height", "width")
        )
        assert header.laterality == row["laterality"] and header.sop_instance_uid == row["sop_instance_uid"]
        if row["pixel_spacing"].startswith("["):
            assert header.geometry.spacing_mm[1:] == pytest.approx(ast.literal_eval(row["pixel_spacing"]))


def test_header_fields_are_pydicoms(files: dict[str, Path]):
    for path in files.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, stop_before_pixels=True)
        header = read_header(path.read_bytes(), str(path))
        assert header.transfer_syntax_uid == data.file_meta.TransferSyntaxUID
        assert (header.manufacturer, header.model) == (data.Manufacturer, data.ManufacturerModelName)
        assert (header.bits_stored, header.signed) == (data.BitsStored, False)


def test_real_volumes_fill_what_their_size_in_mm_says(files: dict[str, Path]):
    sampled, _ = read_volume(str(files["3001"]), Grid())
    assert (sampled.inside[:, 1] - sampled.inside[:, 0]).tolist() == [4, 100, 300]  # .1875, 2.0 and 6.0 mm
    assumed, _ = read_volume(str(files["2008"]), Grid())
    assert (assumed.inside[:, 1] - assumed.inside[:, 0]).tolist() == [7, 384, 384]  # .335 mm, not known, not known
    assert [math.isnan(s) for s in assumed.spacing_mm] == [False, True, True]
    for volume in (sampled, assumed):
        begin, end = volume.inside.T
        assert volume.image[begin[0] : end[0], begin[1] : end[1], begin[2] : end[2]].mean() > 0
        assert volume.image.astype(float).sum() == pytest.approx(
            volume.image[begin[0] : end[0], begin[1] : end[1], begin[2] : end[2]].astype(float).sum()
        )
