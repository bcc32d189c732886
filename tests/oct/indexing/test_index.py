"""The index row of each file: what the header says, why a file is left out, and what a later start reads again."""

import os
from pathlib import Path

import fsspec
import pytest

from oct.indexing.index import index_volumes, mark_duplicates
from oct.indexing.index_file import make_index, write_index
from oct.indexing.manifest import read_folder, read_manifest
from oct.plan import build_plan, locations
from pathray.errors import UnreachableUnit
from tests.builders.oct.scans import Scan, both_eyes, index_scans, read_scan, write_scans


def rows_of(folder, scans, **how):
    manifest = read_manifest(write_scans(folder, scans))
    return mark_duplicates(list(index_volumes(manifest, read_header=read_scan, **how)))


def reasons(rows):
    return [row["exclusion"] for row in rows]


def test_a_row_has_the_size_spacing_and_sources_of_the_header(tmp_path):
    scan = Scan("1", size=(6, 20, 30), sources=("between_slices", "root", "assumed"), order=(5, 4, 3, 2, 1, 0))
    (row,) = rows_of(tmp_path, [scan])
    assert (row["frames"], row["rows"], row["columns"], row["bits"]) == (6, 20, 30, 8)
    assert [row[f"spacing_{axis}_mm"] for axis in "zyx"] == [0.1, 0.01, 0.02]
    assert [row[f"source_{axis}"] for axis in "zyx"] == ["between_slices", "root", "assumed"]
    assert (row["reordered"], row["irregular"], row["line"], row["person"]) == (True, False, 2, "1")
    assert row["bytes"] == os.path.getsize(tmp_path / scan.path)


@pytest.mark.parametrize(
    ("manifest", "header", "laterality", "differs"),
    [("R", "R", "R", False), ("", "L", "L", False), ("R", "", "R", False), ("", "", "", False), ("R", "L", "", True)],
)
def test_an_eye_on_which_manifest_and_header_differ_stays_open_and_is_reported(
    tmp_path, manifest, header, laterality, differs
):
    (row,) = rows_of(tmp_path, [Scan("1", manifest, header_eye=header)])
    assert (row["laterality"], row["laterality_differs"]) == (laterality, differs)
    assert (row["laterality_manifest"], row["laterality_header"]) == (manifest, header)
    assert ("eye" in row["notes"]) == differs


def test_what_a_scan_is_decides_and_its_name_is_only_a_note(tmp_path):
    named, is_circle = Scan("1", name="1_triton_onh_rc_hr_oct_r"), Scan("2", exclusion="circular", name="2_macula")
    rows = rows_of(tmp_path, [named, is_circle, Scan("3", name="3_arc_raster")])
    assert reasons(rows) == ["", "circular", ""]
    assert ["radial or circular" in row["notes"] for row in rows] == [True, False, False]


def test_missing_and_unreadable_files_are_rows_with_their_reason(tmp_path):
    scans = [Scan("1"), Scan("2", there=False), Scan("3")]
    write_scans(tmp_path, scans)
    manifest = read_manifest(str(tmp_path / "manifest.tsv"))
    (tmp_path / scans[2].path).write_text("{")
    rows = list(index_volumes(manifest, read_header=read_scan))
    assert reasons(rows) == ["", "missing", "unreadable"]
    assert rows[2]["detail"] == "truncated: ends in its header"


def test_a_parser_that_fails_costs_its_file_and_not_the_job(tmp_path):
    def broken(path, spacing):
        raise ZeroDivisionError("by a damaged value") if "/1/" in path else FileNotFoundError

    manifest = read_manifest(write_scans(tmp_path, [Scan("1"), Scan("2")]))
    first, second = index_volumes(manifest, read_header=broken)
    assert first["exclusion"] == second["exclusion"] == "unreadable"
    assert "ZeroDivisionError: by a damaged value" in first["detail"]


def test_a_sop_instance_that_is_there_twice_is_kept_once(tmp_path):
    rows = rows_of(tmp_path, [Scan("1", uid="1.9"), Scan("2", uid="1.8"), Scan("3", uid="1.9"), Scan("1", uid="1.9")])
    assert reasons(rows) == ["", "", "duplicate", "duplicate"]
    assert rows[2]["detail"] == "row 2 of person 1 has this SOP instance, too"
    assert rows[3]["detail"] == "row 2 is this file, too"


def test_a_copy_is_kept_where_the_first_of_its_files_is_missing(tmp_path):
    rows = rows_of(tmp_path, [Scan("1", uid="1.9", there=False), Scan("2", uid="1.9")])
    assert reasons(rows) == ["missing", ""]


def test_a_copy_takes_the_place_of_one_that_is_no_longer_listed(tmp_path):
    first, copy = Scan("1", uid="1.9"), Scan("2", uid="1.9")
    before = rows_of(tmp_path, [first, copy])
    state = os.stat(tmp_path / copy.path)
    manifest = read_manifest(write_scans(tmp_path, [copy]))
    os.utime(tmp_path / copy.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    (after,) = mark_duplicates(list(index_volumes(manifest, previous=before, read_header=pytest.fail)))
    assert (before[1]["exclusion"], after["exclusion"], after["detail"]) == ("duplicate", "", "")


def test_a_folder_of_another_device_than_manufacturer_and_model_is_noted(tmp_path):
    path = write_scans(tmp_path, [Scan("1")])
    (tmp_path / "manifest.tsv").write_text((tmp_path / "manifest.tsv").read_text().replace("Triton", "Maestro2"))
    (row,) = index_volumes(read_manifest(path), read_header=read_scan)
    assert row["device"] == "topcon_triton" and "model topcon_maestro2" in row["notes"]


def test_a_manifest_that_says_another_size_is_noted(tmp_path):
    scan = Scan("1")
    path = write_scans(tmp_path, [scan])
    text = (tmp_path / "manifest.tsv").read_text().replace("\t16\t24\t8\t", "\t16\t24\t128\t")
    (tmp_path / "manifest.tsv").write_text(text)
    (row,) = index_volumes(read_manifest(path), read_header=read_scan)
    assert (row["frames"], row["exclusion"]) == (8, "") and "128×16×24" in row["notes"]


def test_a_later_start_reads_only_what_changed_or_could_not_be_read(tmp_path):
    scans = [Scan("1"), Scan("2"), Scan("3", there=False), Scan("4", uid="1.9"), Scan("5", uid="1.9")]
    before = rows_of(tmp_path, scans)
    assert reasons(before) == ["", "", "missing", "", "duplicate"]
    read = []

    def reader(path, spacing):
        read.append(Path(path).parent.name)
        return read_scan(path, spacing)

    stamps = {scan.path: os.stat(tmp_path / scan.path) for scan in scans if scan.there}
    again = read_manifest(write_scans(tmp_path, [scans[0], Scan("2", size=(9, 16, 24)), Scan("3"), *scans[3:]]))
    for scan in (scans[0], *scans[3:]):
        os.utime(tmp_path / scan.path, ns=(stamps[scan.path].st_atime_ns, stamps[scan.path].st_mtime_ns))
    after = mark_duplicates(list(index_volumes(again, previous=before, read_header=reader)))
    assert read == ["2", "3"] and reasons(after) == ["", "", "", "", "duplicate"]
    assert [row["frames"] for row in after] == [8, 9, 8, 8, 8] and after[0] == before[0]


def test_a_manifest_that_changed_its_mind_on_a_file_makes_it_read_again(tmp_path):
    (before,) = rows_of(tmp_path, [Scan("1")])
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text(manifest.read_text().replace("\tR\t", "\tL\t"))
    (after,) = index_volumes(read_manifest(str(manifest)), previous=[before], read_header=read_scan)
    assert (before["laterality"], after["laterality"], after["laterality_differs"]) == ("R", "", True)


def test_a_folder_without_a_manifest_is_indexed_by_its_headers(tmp_path):
    write_scans(tmp_path, both_eyes("7"))
    rows = list(index_volumes(read_folder(str(tmp_path)), read_header=read_scan))
    assert [(row["person"], row["device"], row["laterality"]) for row in rows] == [
        ("7", "topcon_triton", "L"),
        ("7", "topcon_triton", "R"),
    ]


def test_listed_is_accepted_plus_excluded_with_counts_by_reason(tmp_path):
    scans = [*both_eyes("1"), Scan("2", exclusion="circular"), Scan("3", there=False), Scan("4", exclusion="circular")]
    index = index_scans(tmp_path, scans)
    assert (index.table.num_rows, index.accepted.num_rows) == (5, 2)
    assert dict(index.reasons) == {"circular": 2, "missing": 1}
    assert str(index) == "5 listed = 2 accepted + 3 excluded (2 circular, 1 missing)"


def test_a_data_set_in_a_bucket_is_indexed_and_planned(tmp_path):
    """Everything by URL: the manifest, its root, the volumes, the index."""
    fs, scans = fsspec.filesystem("memory"), both_eyes("1")
    write_scans(tmp_path, scans)
    fs.put(f"{tmp_path}/", "/bucket/oct/", recursive=True)

    def reader(path, spacing):
        assert path.startswith("memory://bucket/oct/structural_oct/")
        return read_scan(str(tmp_path / path.removeprefix("memory://bucket/oct/")), spacing)

    manifest = read_manifest("memory://bucket/oct/manifest.tsv")
    rows = mark_duplicates(list(index_volumes(manifest, read_header=reader)))
    write_index(make_index("memory://bucket/oct.parquet", manifest.root, rows))
    plan = build_plan("memory://bucket/oct.parquet", str(tmp_path / "plan"))
    assert sorted(locations(plan)) == sorted(f"memory://bucket/oct/{scan.path}" for scan in scans)
    assert [fs.exists(path) for path in locations(plan)] == [True, True]
    fs.rm("/bucket", recursive=True)


def test_storage_that_is_away_is_no_fault_of_a_file(tmp_path, monkeypatch):
    """A file that a bucket refused for a moment would be missing from the plan for good."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    manifest, calls = read_manifest(write_scans(tmp_path, both_eyes("1"))), []

    def away_at_first(path, spacing):
        calls.append(path)
        if len(calls) == 1:
            raise UnreachableUnit(path, "503")
        return read_scan(path, spacing)

    rows = list(index_volumes(manifest, read_header=away_at_first))
    assert [row["exclusion"] for row in rows] == ["", ""] and len(calls) == 3
