"""The job that indexes OCT volumes: the real ones, generated ones through Ray, and what it refuses."""

import contextlib
import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from oct.indexing.index_file import read_index
from ray_jobs import index_oct
from ray_jobs.index_oct import IndexOctConfig
from ray_jobs.shell.cli import run_job
from tests.builders.oct.opt_dicom import Scan as Written
from tests.builders.oct.opt_dicom import build_dicom
from tests.builders.oct.scans import Scan, both_eyes, cells_of, write_rows


def run(*argv) -> int:
    return run_job(index_oct.main, IndexOctConfig, argv, index_oct.CONFIGS_DIR)


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(index_oct, "ray_session", lambda *_: contextlib.nullcontext())


def write_dicoms(folder: Path, scans) -> str:
    """DICOM files of these scans with a manifest; its path."""
    for scan in scans:
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = np.full(scan.size, 9, np.uint8)
        attributes = {"SOPInstanceUID": scan.uid} if scan.uid else {}
        path.write_bytes(build_dicom(volume, Written(laterality=scan.header_eye, attributes=attributes)))
    return write_rows(folder / "manifest.tsv", [cells_of(scan) for scan in scans])


def cohort(persons: int) -> list[Scan]:
    """Persons with two eyes; the SOP instances of the files are numbered."""
    eyes = [eye for p in range(persons) for eye in both_eyes(str(p), size=(4, 8, 8))]
    return [Scan(**{**vars(eye), "uid": f"1.2.{n}"}) for n, eye in enumerate(eyes)]


def split_of(path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    lines = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    for row in csv.DictReader(lines):
        found.setdefault(row["group_id"], set()).add(row["split"])
    return found


def test_the_real_volumes_are_indexed(shared_data, tmp_path, without_ray, caplog, monkeypatch):
    """Of 16 files, three have a single frame; 2008 and 2016 say no pixel spacing anywhere."""
    caplog.set_level("INFO")
    words = (f"manifest={shared_data}/oct/retinal_oct/manifest.tsv", f"output={tmp_path}/oct.parquet")
    assert run(*words, f"split={tmp_path}/split.csv") == 0
    assert "16 listed = 13 accepted + 3 excluded (3 single_frame)" in caplog.text
    rows = {row["person"]: row for row in read_index(f"{tmp_path}/oct.parquet").table.to_pylist()}
    assert {p for p, row in rows.items() if row["exclusion"]} == {"1001", "1002", "1003"}
    assert ["circular scan" in rows[p]["notes"] for p in ("1001", "1002", "1003")] == [False, True, True]
    accepted = {p: row for p, row in rows.items() if not row["exclusion"]}
    assert {p for p, row in accepted.items() if row["source_y"] == "assumed"} == {"2008", "2016"}
    assert {p for p, row in accepted.items() if row["source_y"] == "frame_measures"} == {"2007", "2013"}
    cirrus = accepted["3001"]
    assert (cirrus["frames"], cirrus["rows"], cirrus["columns"]) == (4, 1024, 512)
    assert (cirrus["spacing_y_mm"], cirrus["spacing_x_mm"]) == (0.00195312, 0.0117188)
    assert not any(row["laterality_differs"] for row in rows.values())
    assert {row["laterality"] for row in rows.values()} == {"L", "R"}
    assert all(len(parts) == 1 for parts in split_of(tmp_path / "split.csv").values())
    summary = (tmp_path / "summary.md").read_text()
    assert "| excluded: single\\_frame | 3 |" in summary or "| excluded: single_frame | 3 |" in summary
    monkeypatch.setattr("oct.indexing.head.open_source", lambda path: pytest.fail("it was read again"))
    before = (tmp_path / "oct.parquet").read_bytes()
    assert run(*words) == 0 and (tmp_path / "oct.parquet").read_bytes() == before


@pytest.mark.ray
def test_a_data_set_is_indexed_through_ray_with_counts_by_reason(tmp_path, ray_cluster, caplog, capsys):
    caplog.set_level("INFO")
    scans = cohort(6)
    manifest = write_dicoms(tmp_path / "data", [*scans, Scan("7", uid="1.2.3", name="copy", size=(4, 8, 8))])
    (tmp_path / "data" / scans[0].path).unlink()
    (tmp_path / "data" / scans[1].path).write_bytes(b"no DICOM")
    words = (f"manifest={manifest}", f"output={tmp_path}/i.parquet", f"split={tmp_path}/s.csv", "files_per_task=3")
    assert run(*words, "max_unreadable_fraction=0.2") == 0
    assert "13 listed = 10 accepted + 3 excluded (1 duplicate, 1 missing, 1 unreadable)" in caplog.text
    assert "topcon_triton  10       5        10" in caplog.text
    assert f"outputs: index={tmp_path}/i.parquet split={tmp_path}/s.csv" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "i.parquet")
    assert table["person"].to_pylist() == [*(str(p // 2) for p in range(12)), "7"]
    assert table["detail"].to_pylist()[1].startswith("not_dicom") and not (tmp_path / "i_parts").exists()
    parts = split_of(tmp_path / "s.csv")
    assert set(parts) == {"1", "2", "3", "4", "5"} and all(len(own) == 1 for own in parts.values())


def test_too_many_unreadable_files_end_the_job_and_the_index_lists_them(tmp_path, without_ray, capsys):
    manifest = write_dicoms(tmp_path / "data", scans := cohort(3))
    (tmp_path / "data" / scans[4].path).write_bytes(b"")
    assert run(f"manifest={manifest}", f"output={tmp_path}/i.parquet") == 2
    said = capsys.readouterr().err
    assert f"1 of 6 files could not be read:\n  row 6, {scans[4].path}: unreadable, empty" in said
    assert read_index(f"{tmp_path}/i.parquet").accepted.num_rows == 5 and not (tmp_path / "i_parts").exists()
    (tmp_path / "data" / scans[4].path).write_bytes((tmp_path / "data" / scans[5].path).read_bytes())
    assert run(f"manifest={manifest}", f"output={tmp_path}/i.parquet") == 0, "only that one is read again"


def test_participants_recommend_the_split(tmp_path, without_ray):
    manifest = write_dicoms(tmp_path / "data", cohort(3))
    table = tmp_path / "participants.tsv"
    table.write_text("person_id\trecommended_split\n0\tval\n1\ttrain\n2\ttest\n")
    assert run(f"manifest={manifest}", f"output={tmp_path}/i.parquet", f"participants={table}") == 0
    assert split_of(tmp_path / "i_split.csv") == {"0": {"val"}, "1": {"train"}, "2": {"test"}}


def test_a_folder_without_a_manifest_and_one_device_of_it(tmp_path, without_ray):
    scans = [*cohort(2), Scan("9", device="zeiss_cirrus", size=(4, 8, 8), uid="1.2.99")]
    write_dicoms(tmp_path / "data", scans)
    words = (f"gcs_root={tmp_path}/data", f"output={tmp_path}/i.parquet")
    assert run(*words) == 0
    assert read_index(f"{tmp_path}/i.parquet").accepted.num_rows == 5
    assert run(*words, "devices=[zeiss_cirrus]") == 0
    assert read_index(f"{tmp_path}/i.parquet").table["person"].to_pylist() == ["9"]


def test_another_file_at_the_output_is_not_overwritten(tmp_path, without_ray, capsys):
    manifest = write_dicoms(tmp_path / "data", cohort(1))
    (tmp_path / "i.parquet").write_bytes(b"mine")
    assert run(f"manifest={manifest}", f"output={tmp_path}/i.parquet") == 2
    assert "index of volumes" in capsys.readouterr().err and (tmp_path / "i.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("output=i.parquet",), "manifest"),
        (("root=a", "gcs_root=b", "output=i.parquet"), "two names of one key"),
        (("root=a", "output=i.parquet", "grid_shape=[64,384]"), "three values are required"),
        (("root=a", "output=i.parquet", "max_unreadable_fraction=2"), "max_unreadable_fraction"),
    ],
)
def test_keys_that_do_not_fit_are_refused(words, said, capsys):
    assert run(*words) == 2 and said in capsys.readouterr().err


def test_a_dry_run_counts_files_and_misses_those_that_are_not_there(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    manifest = write_dicoms(tmp_path / "data", scans := cohort(2))
    words = (f"manifest={manifest}", f"output={tmp_path}/i.parquet", "--dry-run")
    assert run(*words) == 0 and "dry run: 4 files" in caplog.text
    (tmp_path / "data" / scans[2].path).unlink()
    assert run(*words) == 2 and "1 of 4, such as" in capsys.readouterr().err
    assert run(*words, "max_unreadable_fraction=0.25") == 0 and "dry run: 3 files" in caplog.text
    assert not (tmp_path / "i.parquet").exists()
