"""What breaks while the pretraining job runs: slides, storage, the job. It continues, or ends with a clear error.

Without Ray: what ends a worker of its is in test_trainer, and a job that is killed with it in test_remote_run.
"""

import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ijepath import assembly
from pathray.data.faults import Fault
from pathray.run import quarantine
from pathray.store import checkpoint
from pathray.store.storage import Storage
from tests.builders.cohort import write_manifest, write_mask
from tests.builders.hanging_server import hanging_server
from tests.builders.jobs import job_command, job_environment, kill_job, wait_for
from tests.builders.runs.run import (
    BUDGET,
    FULL_FROM,
    GLOBAL_BATCH,
    TAG,
    WITHOUT_RAY,
    checkpoints,
    command,
    corrupt,
    discard,
    index_and_catalog,
    metrics,
    on_a_filling_disk,
    pretrain,
    quarantined,
    room_afterwards,
    undisturbed,
    weights,
    write_cohort,
)  # fmt: skip
from tests.builders.slides import truncate_tile, write_slide


@pytest.fixture
def run(tmp_path):
    """A folder for a run, whose checkpoints do not outlive the test."""
    yield tmp_path / "run"
    discard(tmp_path / "run")


# --- slides -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    """A server of a slide that can stop answering."""
    slide = tmp_path_factory.mktemp("hanging") / "slide3.tiff"
    write_slide(slide, tile=128, downsamples=(1, 2), width=208, height=208)
    with hanging_server(slide) as server:
        yield server


@pytest.fixture(scope="module")
def battered(tmp_path_factory, hanging):
    """A run on four slides of which one has a truncated tile, one is deleted while it runs, and one hangs: its folder,
    the folder of the slides and the exit code. A little more than one pass, so that every anchor is asked for."""
    folder = tmp_path_factory.mktemp("battered")
    run, names = folder / "run", [f"slide{i}.tiff" for i in range(4)]
    write_cohort(folder, slides=3)
    write_mask(folder / "mask3.png", np.full((52, 52), 255, np.uint8))
    rows = [{"slide_id": name, "wsi_path": name, "mask_path": ""} for name in names]
    rows[3] |= {"mask_path": "mask3.png", "wsi_path": hanging.url}
    catalog = index_and_catalog(folder, write_manifest(folder / "slides.csv", rows), "data.anchor_stride_fraction=1")
    for tile in (16, 17, 18):
        truncate_tile(folder / "slide1.tiff", 0, tile, keep=0.4)
    hanging.hang()

    def delete_one():
        wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run))
        (folder / "slide2.tiff").unlink()

    thread = threading.Thread(target=delete_one)
    thread.start()
    code = pretrain(
        run, None, WITHOUT_RAY, f"data.anchor_catalog_manifest={catalog}", "data.anchor_stride_fraction=1",
        "data.sampling_strategy=global_uniform", "data.max_open_slides=1", "data.tile_cache_mb=1",
        "data.read_timeout_s=4", "data.max_corrupt_fraction=0.9", "optimization.total_images_budget=56",
    )  # fmt: skip
    thread.join()
    yield folder, code
    discard(run)


def test_training_goes_on_over_slides_that_break(battered):
    folder, code = battered
    assert code == 0
    assert [row["images_seen"] for row in metrics(folder / "run")] == list(range(4, 57, 4))
    faults = corrupt(quarantined(folder / "run"))
    assert {row["reason"] for row in faults} == {"missing", "truncated", "timeout"}
    positions = [row["position"] for row in faults]
    assert positions == sorted(positions) and max(positions) < 56
    seen = [(row["position"], row["attempt"]) for row in quarantined(folder / "run")]
    assert len(seen) == len(set(seen))


def test_a_slide_deleted_while_the_job_runs_is_quarantined_by_its_file(battered):
    folder, _ = battered
    missing = [row for row in quarantined(folder / "run") if row["reason"] == "missing"]
    assert {(row["path"], row["source"]) for row in missing} == {(str(folder / "slide2.tiff"), 2)}
    assert min(row["position"] for row in missing) >= GLOBAL_BATCH, "it was there at the first step"


def test_a_truncated_tile_is_quarantined_with_its_level_and_index(battered):
    folder, _ = battered
    truncated = [row for row in quarantined(folder / "run") if row["reason"] == "truncated"]
    assert {row["path"] for row in truncated} == {str(folder / "slide1.tiff")}
    assert all(row["detail"].startswith("level 0, tile 1") and "(row 2, column" in row["detail"] for row in truncated)


def test_a_read_that_hangs_is_given_up_after_its_timeout(battered):
    folder, _ = battered
    hung = [row for row in quarantined(folder / "run") if row["reason"] == "timeout" and row["source"] == 3]
    assert hung and all("no data in 4" in row["detail"] for row in hung)
    assert {row["source_name"] for row in hung} == {"slide3.tiff"}


def test_too_many_unreadable_units_end_the_run_until_the_data_are_mended(run, tmp_path, capfd):
    catalog = index_and_catalog(tmp_path, write_cohort(tmp_path, slides=3))
    (tmp_path / "slide2.tiff").rename(tmp_path / "elsewhere.tiff")
    words = (WITHOUT_RAY, f"data.anchor_catalog_manifest={catalog}", "data.max_corrupt_fraction=0.05")
    assert pretrain(run, None, *words) == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in err + out and "outputs:" not in out
    faults = corrupt(quarantined(run))
    units = len({row["position"] for row in faults})
    assert f"error: too many units cannot be read: {units} of 32 units up to step 8 were replaced" in err
    assert all(text in err for text in ("max_corrupt_fraction", f"found: {units / 32}", "at most 0.05"))
    assert {(row["reason"], row["path"]) for row in faults} == {("missing", str(tmp_path / "slide2.tiff"))}
    assert max(row["position"] for row in faults) >= 24 == max(checkpoints(run).values())
    (tmp_path / "elsewhere.tiff").rename(tmp_path / "slide2.tiff")
    assert pretrain(run, None, *words) == 0
    kept = [row for row in faults if row["position"] < 24]
    assert corrupt(quarantined(run)) == kept and len(kept) > 0.05 * BUDGET


def test_a_slide_gone_since_the_last_start_is_refused_until_the_catalog_is_given(run, tmp_path, capfd):
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ijepath.plan import identity
    from pathray.config.load import load_config
    from ray_jobs.pretrain_ijepath import PretrainConfig
    from ray_jobs.train.ijepath_inputs import prepare

    def prepared(*argv):
        words = command(run, manifest, WITHOUT_RAY, *argv)
        return prepare(load_config(PretrainConfig, words, configs_dir=CONFIGS_DIR, groups=GROUPS).config)

    manifest = write_cohort(tmp_path, slides=2)
    before = prepared()
    assert before.built == ["slide index", "anchor catalog", "plan"] and prepared().built == []
    (tmp_path / "slide1.tiff").unlink()
    assert pretrain(run, manifest, WITHOUT_RAY) == 2
    err = capfd.readouterr().err
    assert "1 of 2 slides failed" in err and "s1: " in err and "slide1.tiff" in err and "Traceback" not in err
    after = prepared(f"data.anchor_catalog_manifest={run}/indexes/anchor_catalog_manifest.json")
    assert after.built == [] and identity(after.plan) == identity(before.plan)
    write_slide(tmp_path / "slide1.tiff", width=896, height=768, tile=128, downsamples=(1, 2), seed=1)
    again = prepared()
    assert "slide index" in again.built and identity(again.plan) == identity(before.plan)


# --- storage ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_ends_the_run_and_leaves_what_it_goes_on_from(run, tmp_path_factory, monkeypatch, capfd):
    whole = undisturbed(tmp_path_factory.getbasetemp())
    with monkeypatch.context() as patch, room_afterwards():
        patch.setattr(assembly, "assemble", on_a_filling_disk(assembly.assemble))
        assert pretrain(run, whole.manifest, WITHOUT_RAY) == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in err + out and "outputs:" not in out
    assert "error: cannot write: " in err and "File too large" in err and str(run / "checkpoints") in err
    left = checkpoints(run)
    assert left and max(left.values()) <= FULL_FROM and all(n % 8 == 0 for n in left.values())
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == sorted(left), "nothing half-written stays"
    checkpoint.load(checkpoint.latest(str(run / "checkpoints"), TAG).path)
    assert not (run / "encoder").exists()
    assert pretrain(run, whole.manifest, WITHOUT_RAY) == 0
    assert weights(run) == weights(whole.folder)
    assert [row["images_seen"] for row in metrics(run)] == list(range(4, BUDGET + 1, 4))


def test_a_report_that_no_part_backs_any_more_is_removed(tmp_path):
    store = Storage.of(tmp_path)
    fault = Fault(5, 0, 17, 2, "missing", "a.tiff", "", False)
    slides = pa.table({"slide_id": ["s0", "s1", "s2"]})
    store.write_bytes(quarantine.part_name(0, 8, 0), quarantine.to_parquet([fault], slides))
    assert quarantine.merge(store) == 1 and [row["source_name"] for row in quarantined(tmp_path)] == ["s2"]
    quarantine.sweep(store, 8)
    assert quarantine.merge(store) == 1, "a part that ends where the run resumes stays"
    quarantine.sweep(store, 7)
    assert quarantine.merge(store) == 0 and not (tmp_path / "quarantine.parquet").exists()


# --- the job ----------------------------------------------------------------------------------------------------------


def uncommitted(run: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return [p for p in (run / "checkpoints").glob(f"{TAG}-*") if not (p / "COMMITTED.json").exists()]


@pytest.mark.heavy
def test_a_job_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(run, tmp_path, tmp_path_factory):
    whole = undisturbed(tmp_path_factory.getbasetemp())
    words = command(run, whole.manifest, WITHOUT_RAY, "logging.mlflow=true")
    with (tmp_path / "said").open("w") as said:
        line = job_command("ray_jobs.pretrain_ijepath", *words)
        job = subprocess.Popen(line, env=job_environment(), stdout=said, stderr=said)
        try:
            wait_for(lambda: (run / "checkpoints").exists() and checkpoints(run), seconds=240)
            half = wait_for(lambda: uncommitted(run), seconds=60, every=0.001)
        finally:
            kill_job(job)
    before = checkpoints(run)
    assert before and max(before.values()) < BUDGET
    assert half[0].name not in before
    with pytest.raises(FileNotFoundError):
        checkpoint.load(str(half[0]))
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert pretrain(run, whole.manifest, WITHOUT_RAY) == 0
    assert weights(run) == weights(whole.folder)
    assert [row["images_seen"] for row in metrics(run)] == list(range(4, BUDGET + 1, 4))
    assert half[0].exists() and half[0].name not in checkpoints(run), "it is swept when it has grown old"
