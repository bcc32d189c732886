"""The job that builds a feature store: counts, restarts, what it refuses, and once through Ray."""

import contextlib
import csv

import h5py
import numpy as np
import pytest

from mil.sections import CONFIGS_DIR, GROUPS
from mil.store.reading import Store
from ray_jobs import build_store
from ray_jobs.build_store import BuildStoreConfig
from ray_jobs.shell.cli import run_job
from tests.builders.bags import random_bag


@pytest.fixture
def bags(tmp_path, monkeypatch):
    for i in range(4):
        random_bag(tmp_path / "h5" / f"s{i}.h5", 40 + i, seed=i)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "h5"


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(build_store, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("ray_jobs.extract.ordered_map.is_ray_running", lambda: False)


def run(*argv) -> int:
    words = ("data.features=h5", "data.store=store", *argv)
    return run_job(build_store.main, BuildStoreConfig, words, CONFIGS_DIR, GROUPS)


def report():
    with open("store_report.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_listed_slides_are_ok_or_failed_and_all_in_the_report(bags, without_ray, tmp_path, caplog):
    caplog.set_level("INFO")
    with h5py.File(bags / "s2.h5", "r+") as file:
        file["features"][7, 1] = np.inf
    (tmp_path / "slides.csv").write_text("slide_id,label\ns0,a\ns1,a\ns2,b\ns9,b\n")
    words = ("storage.filter_by_csv=true", "data.csv=slides.csv", "storage.max_instances=20")
    assert run(*words) == 2
    assert not (tmp_path / "store").exists() and len(report()) == 4
    assert run(*words, "min_success_fraction=0.5") == 0
    assert "4 listed = 2 ok + 2 failed; 40 tiles, 2 slides capped" in caplog.text
    rows = {row["slide_id"]: row for row in report()}
    assert [rows[name]["status"] for name in ("s0", "s1", "s2", "s9")] == ["ok", "ok", "failed", "failed"]
    assert "row: 7" in rows["s2"]["error"] and "no bag" in rows["s9"]["error"] and rows["s1"]["listed_rows"] == "41"
    assert Store("store").ids == ["s0", "s1"]


def test_a_second_start_does_nothing_and_a_changed_bag_is_stored_again(bags, without_ray, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run() == 0
    before = (tmp_path / "store" / "features_000.bin").stat().st_ino
    assert run() == 0
    assert "nothing has changed" in caplog.text
    assert (tmp_path / "store" / "features_000.bin").stat().st_ino == before
    random_bag(bags / "s1.h5", 41, seed=99)
    assert run() == 0
    with h5py.File(bags / "s1.h5") as file:
        np.testing.assert_array_equal(Store("store").features(1), file["features"][:].astype(np.float16))


def test_a_dry_run_counts_bags_and_writes_nothing(bags, without_ray, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run("--dry-run") == 0
    assert "4 bags" in caplog.text and not (tmp_path / "store").exists()


def test_the_shipped_groups_name_the_places_of_a_cohort(without_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_bag(tmp_path / "features" / "gej" / "uni2h" / "a.h5", 9)
    words = ("data=gej", "encoder=uni2h", "storage=mmap", "storage.cap_strategy=random")
    assert run_job(build_store.main, BuildStoreConfig, words, CONFIGS_DIR, GROUPS) == 0
    assert Store("stores/gej/uni2h").ids == ["a"]


def test_the_predecessors_store_is_recognised_and_its_slides_are_filtered_by_a_table(
    without_ray, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    features = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float16)
    (tmp_path / "h5").mkdir()
    features.tofile(tmp_path / "h5" / "features_000.bin")
    where = {"offsets": [0, 4], "lengths": [4, 5], "chunk_ids": [0, 0], "feat_dim": 6}
    np.savez(tmp_path / "h5" / "index_arrays.npz", slide_ids=np.array(["a", "b"]), **where)
    (tmp_path / "slides.csv").write_text("slide_id,label\nb,x\n")
    assert run("--dry-run") == 0 and not (tmp_path / "store").exists()
    assert run("storage.filter_by_csv=true", "data.csv=slides.csv") == 0
    store = Store("store")
    assert store.ids == ["b"] and report()[0]["path"].endswith("h5/index_arrays.npz#b")
    np.testing.assert_array_equal(store.features(0), features[4:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.features=",), "data.features is required"),
        (("data.store=gs://bucket/store",), "memory-mapped"),
        (("storage.cap_strategy=grid",), "cap_strategy"),
        (("storage.filter_by_csv=true",), "data.csv is required"),
        (("data.features=nowhere",), "no folder of bags"),
    ],
)
def test_what_cannot_be_built_is_told(bags, without_ray, capsys, words, said):
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_slides_are_written_by_tasks_of_ray(bags, ray_cluster):
    assert run("slides_per_task=1") == 0
    store = Store("store")
    assert len(store) == 4
    for i in range(4):
        store.check(i)
