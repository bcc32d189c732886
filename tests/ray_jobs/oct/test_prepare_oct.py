"""The job that prepares volumes: the real ones, through Ray, restarted, and what it refuses."""

import contextlib
import csv
import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid

from oct.indexing.index_file import read_index
from pathray.run.fence import Fence
from ray_jobs import index_oct, prepare_oct
from ray_jobs.index_oct import IndexOctConfig
from ray_jobs.prepare_oct import PrepareOctConfig
from ray_jobs.shell.cli import run_job
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina

HTJ2K = "1.2.840.10008.1.2.4.201"


def run(*argv) -> int:
    return run_job(prepare_oct.main, PrepareOctConfig, argv, prepare_oct.CONFIGS_DIR)


def make_index(*argv) -> int:
    return run_job(index_oct.main, IndexOctConfig, argv, index_oct.CONFIGS_DIR)


@pytest.fixture
def without_ray(monkeypatch):
    for job in (index_oct, prepare_oct):
        monkeypatch.setattr(job, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("ray_jobs.extract.ordered_map.is_ray_running", lambda: False)


def write_volumes(folder: Path) -> list[Path]:
    """Three volumes of two syntaxes, one that is HTJ2K already, and a single frame."""
    syntaxes = (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.RLELossless, uid.HTJ2KLossless)
    paths = []
    for number, syntax in enumerate((*syntaxes, syntaxes[0])):
        path = folder / "structural_oct" / "topcon_triton" / str(number) / "a.dcm"
        path.parent.mkdir(parents=True)
        volume = layered_retina(1 if number == 4 else 3, 24, 32)
        path.write_bytes(build_dicom(volume, Scan(syntax=syntax, attributes={"SOPInstanceUID": f"1.2.{number}"})))
        paths.append(path)
    return paths


def test_the_real_volumes_are_prepared_and_index_the_same(shared_data, tmp_path, without_ray, caplog):
    caplog.set_level("INFO")
    real = shared_data / "oct" / "retinal_oct"
    assert make_index(f"manifest={real}/manifest.tsv", f"output={tmp_path}/oct.parquet") == 0
    assert run(f"index={tmp_path}/oct.parquet", f"output={tmp_path}/out") == 0
    assert "16 listed = 13 written + 0 copied + 0 kept + 0 failed + 3 excluded" in caplog.text
    before = read_index(f"{tmp_path}/oct.parquet")
    for row in before.accepted.to_pylist():
        old, new = (pydicom.dcmread(f"{root}/{row['path']}") for root in (before.root, f"{tmp_path}/out"))
        assert new.file_meta.TransferSyntaxUID == HTJ2K and new.SOPInstanceUID == old.SOPInstanceUID
        np.testing.assert_array_equal(new.pixel_array, old.pixel_array)
    assert make_index(f"manifest={tmp_path}/out/manifest.tsv", f"output={tmp_path}/again.parquet") == 0
    spacing = [f"{name}_{axis}{unit}" for axis in "zyx" for name, unit in (("spacing", "_mm"), ("source", ""))]
    names = ("path", "person", "device", "region", "laterality", "frames", "rows", "columns", "bits")
    same = [*names, "sop_instance_uid", *spacing]
    after = read_index(f"{tmp_path}/again.parquet").accepted
    assert after.select(same).to_pylist() == before.accepted.select(same).to_pylist()


def test_a_later_start_prepares_what_is_new_or_changed(tmp_path, without_ray, caplog):
    caplog.set_level("INFO")
    paths = write_volumes(tmp_path / "in")
    words = (f"index={tmp_path}/oct.parquet", f"output={tmp_path}/out")
    assert make_index(f"root={tmp_path}/in", f"output={tmp_path}/oct.parquet") == 0
    assert run(*words) == 0
    assert "5 listed = 3 written + 1 copied + 0 kept + 0 failed + 1 excluded" in caplog.text
    target = [tmp_path / "out" / path.relative_to(tmp_path / "in") for path in paths]
    assert target[3].read_bytes() == paths[3].read_bytes() and not target[4].exists()
    stamps = [path.stat().st_mtime_ns for path in target[:4]]
    assert run(*words) == 0
    assert "5 listed = 0 written + 0 copied + 4 kept + 0 failed + 1 excluded" in caplog.text
    assert [path.stat().st_mtime_ns for path in target[:4]] == stamps
    target[1].unlink()
    paths[2].write_bytes(build_dicom(layered_retina(3, 24, 40), Scan()))
    assert run(*words) == 0
    assert "5 listed = 2 written + 0 copied + 2 kept + 0 failed + 1 excluded" in caplog.text
    assert pydicom.dcmread(target[2]).Columns == 40
    assert "| excluded: single_frame | 1 |" in (tmp_path / "out" / "summary.md").read_text().replace("\\", "")


def test_a_stopped_job_keeps_what_it_has(tmp_path, without_ray, monkeypatch, caplog):
    caplog.set_level("INFO")
    write_volumes(tmp_path / "in")
    words = (f"index={tmp_path}/oct.parquet", f"output={tmp_path}/out")
    assert make_index(f"root={tmp_path}/in", f"output={tmp_path}/oct.parquet") == 0
    with monkeypatch.context() as patch:
        real, calls = prepare_oct.Progress.update, []

        def stop(self, *args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            real(self, *args)

        patch.setattr(prepare_oct.Progress, "update", stop)
        assert run(*words) == 130
    assert run(*words) == 0
    assert "5 listed = 1 written + 1 copied + 2 kept + 0 failed + 1 excluded" in caplog.text


def test_one_start_at_a_time_writes_to_an_output(tmp_path, without_ray, capsys, caplog):
    write_volumes(tmp_path / "in")
    words = (f"index={tmp_path}/oct.parquet", f"output={tmp_path}/out")
    assert make_index(f"root={tmp_path}/in", f"output={tmp_path}/oct.parquet") == 0
    capsys.readouterr()
    with Fence(f"{tmp_path}/out", trains=False):
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert "another process writes there" in said and f"process {os.getpid()}, since 20" in said
        assert "ray_jobs.stop" not in said and not (tmp_path / "out/manifest.tsv").exists()
        record = json.loads((tmp_path / "out/owner.json").read_bytes())
    (tmp_path / "out/owner.json").write_text(json.dumps(record | {"pid": 2**22 - 1}))
    assert run(*words) == 0
    assert "its owner has ended" in caplog.text and "waiting for a sign of life" not in caplog.text
    assert (tmp_path / "out/manifest.tsv").exists() and not (tmp_path / "out/owner.json").exists()


@pytest.mark.ray
def test_volumes_are_prepared_through_ray_and_a_damaged_one_is_named(tmp_path, ray_cluster, caplog, capsys):
    caplog.set_level("INFO")
    paths = write_volumes(tmp_path / "in")
    assert make_index(f"root={tmp_path}/in", f"output={tmp_path}/oct.parquet") == 0
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    paths[2].unlink()
    words = (f"index={tmp_path}/oct.parquet", f"output={tmp_path}/out")
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "2 of 4 volumes failed" in said and "truncated" in said and "no such file" in said
    assert run(*words, "min_success_fraction=0.5") == 0
    rows = list(csv.DictReader(open(tmp_path / "out" / "manifest.tsv", newline=""), delimiter="\t"))
    assert [row["person_id"] for row in rows] == ["0", "3"]
    assert not (tmp_path / "out" / "structural_oct" / "topcon_triton" / "1" / "a.dcm").exists()


def test_the_folder_of_the_volumes_is_no_output(tmp_path, without_ray, capsys):
    write_volumes(tmp_path / "in")
    assert make_index(f"root={tmp_path}/in", f"output={tmp_path}/oct.parquet") == 0
    assert run(f"index={tmp_path}/oct.parquet", f"output={tmp_path}/in") == 2
    assert "which it would overwrite" in capsys.readouterr().err
