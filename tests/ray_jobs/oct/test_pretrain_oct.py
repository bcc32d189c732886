"""The job that pretrains on OCT, on generated volumes: from a manifest to an encoder, stopped, resumed, moved."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from oct.plan import held_out_sources, locations
from pathray.data.plan import Plan
from pathray.run.stop import request_stop
from pathray.store.artifact import EncoderArtifact
from tests.builders.jobs import wait_for
from tests.builders.oct.oct_job import BUDGET, HELD_OUT, PERSONS, WITHOUT_RAY, pretrain, write_data
from tests.builders.runs.weights import newest_weights

TAG = "oct"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An undisturbed run without Ray."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(run, data, WITHOUT_RAY) == 0
    return run


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_command_goes_from_a_manifest_to_an_encoder(whole):
    vit, description = EncoderArtifact.load(str(whole / "encoder"))
    assert description["science"] == "oct" and vit.config.img_size == (8, 32, 32)
    assert description["preprocessing"]["normalise"] == "volume_inside"
    rows = [row for row in metrics(whole) if row["images_seen"]]
    assert [row["images_seen"] for row in rows if "loss" in row] == list(range(4, BUDGET + 1, 4))
    assert rows[-1]["loss"] < rows[0]["loss"] <= 2.2
    assert {"explained", "target_rankme", "target_std", "prediction_std"} <= rows[-1].keys()
    assert (whole / "summary.md").exists() and (whole / "indexes" / "volumes.parquet").exists()


def test_persons_who_are_held_out_validate_and_are_never_trained_on(whole):
    plan = Plan.open(whole / "plan")
    persons = plan.sources["person"].to_pylist()
    trained = {persons[i] for i in plan.column("source")}
    assert trained == {str(n) for n in range(PERSONS - HELD_OUT)}
    assert {persons[i] for i in held_out_sources(plan)} == {str(n) for n in range(PERSONS - HELD_OUT, PERSONS)}
    found = [row["val/loss"] for row in metrics(whole) if "val/loss" in row]
    assert len(found) == 3 and all(0.1 < loss < 3 for loss in found), found


@pytest.fixture
def stop_in(monkeypatch):
    """`stop_in(run)`: ask the next training in the folder `run` to stop in its second step."""
    from oct.recipe import OctRecipe

    after_step, waiting = OctRecipe.after_step, []

    def stop_once(self, progress):
        after_step(self, progress)
        if progress.step == 1 and waiting:
            request_stop(str(waiting.pop()))

    monkeypatch.setattr(OctRecipe, "after_step", stop_once)
    return waiting.append


def test_a_run_that_is_stopped_and_resumed_ends_bit_equal(data, whole, tmp_path, stop_in):
    run = tmp_path / "run"
    stop_in(run)
    assert pretrain(run, data, WITHOUT_RAY) == 0
    assert newest_weights(run, TAG)[0] < BUDGET
    assert pretrain(run, data, WITHOUT_RAY) == 0
    assert newest_weights(run, TAG) == newest_weights(whole, TAG)
    losses = [[row.get("loss") for row in metrics(folder)] for folder in (run, whole)]
    assert losses[0] == losses[1]


def test_other_micro_batches_and_files_that_moved_are_the_same_run_to_rounding(data, whole, tmp_path, stop_in):
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(data, moved)
    stop_in(run)
    assert pretrain(run, data, WITHOUT_RAY) == 0
    shutil.copytree(run / "plan", tmp_path / "before")
    assert pretrain(run, moved, WITHOUT_RAY, f"data.gcs_root={moved}", "optimization.micro_batch=1") == 0
    assert locations(Plan.open(tmp_path / "before"))[0].startswith(str(data))
    assert locations(Plan.open(run / "plan"))[0].startswith(str(moved))
    first, second = (EncoderArtifact.load(str(f / "encoder"))[0].state_dict() for f in (whole, run))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=2e-4, err_msg=name)


def test_a_finished_run_is_left_as_it_is(data, whole, caplog):
    caplog.set_level("INFO")
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*") if path.is_file()}
    assert pretrain(whole, data, WITHOUT_RAY) == 0
    assert "this run is finished" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("optimization.lr=2e-3",), "optimization.lr"),
        (("data.seed=7",), "data.seed"),
        (("mask.kind=random",), "mask.kind"),
        (("optimization.batch_size_per_gpu=3",), "batch_size_per_gpu"),
    ],
)
def test_another_run_is_refused_in_its_folder(data, whole, capsys, words, named):
    assert pretrain(whole, data, WITHOUT_RAY, *words) == 2
    assert named in capsys.readouterr().err


def test_nothing_to_train_on_is_told_with_the_keys_that_help(tmp_path, capsys):
    from oct.config import CONFIGS_DIR
    from ray_jobs import pretrain_oct as job
    from ray_jobs.shell.cli import run_job

    assert run_job(job.main, job.PretrainOctConfig, [f"output={tmp_path}/run"], CONFIGS_DIR) == 2
    assert "data.manifest=manifest.tsv" in capsys.readouterr().err


@pytest.mark.ray
def test_a_run_through_ray_has_the_bits_of_one_without(data, whole, tmp_path, ray_cluster):
    assert pretrain(tmp_path / "run", data, "scaling.workers=1") == 0
    assert newest_weights(tmp_path / "run", TAG) == newest_weights(whole, TAG)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_out_of_memory_with_one_volume_takes_a_smaller_image_where_that_is_allowed(
    data, tmp_path, monkeypatch, caplog, capsys, positions
):
    """Each decision is logged; the run stays the same run, with positions resampled from its first grid."""
    caplog.set_level("INFO")
    from oct.recipe import OctRecipe

    loss, run, sizes = OctRecipe.loss, tmp_path / "run", []

    def need_memory(self, phase, micro, progress):
        sizes.append((len(micro["image"]), micro["image"].shape[-1]))
        if sizes[-1][1] > 24:
            raise MemoryError("no room for such a volume")
        return loss(self, phase, micro, progress)

    monkeypatch.setattr(OctRecipe, "loss", need_memory)
    words = (WITHOUT_RAY, f"model.positions={positions}", "data.smaller_image=[8,24,24]", "validation.volumes=0")
    assert pretrain(run, data, *words) == 2, "it is not allowed"
    assert "out of memory with a micro-batch of one unit" in capsys.readouterr().err
    sizes.clear()
    assert pretrain(run, data, *words, "data.allow_smaller_image=true") == 0
    assert [size for i, size in enumerate(sizes) if size not in sizes[:i]] == [(2, 32), (1, 32), (1, 24)]
    for taken in ("micro_batch=1", "smaller units"):
        assert f"the next attempt takes {taken}" in caplog.text
    vit, description = EncoderArtifact.load(str(run / "encoder"))
    assert description["preprocessing"]["size"] == [8, 24, 24] and vit.config.img_size == (8, 32, 32)


def test_a_run_on_smaller_images_stays_on_them_when_it_is_resumed(data, tmp_path, monkeypatch, capsys, stop_in):
    from oct.recipe import OctRecipe

    loss, run, sizes = OctRecipe.loss, tmp_path / "run", []

    def need_memory(self, phase, micro, progress):
        sizes.append(micro["image"].shape[-1])
        if len(sizes) <= 2:
            raise MemoryError("no room at first")
        return loss(self, phase, micro, progress)

    monkeypatch.setattr(OctRecipe, "loss", need_memory)
    words = (WITHOUT_RAY, "data.smaller_image=[8,24,24]", "validation.volumes=0")
    stop_in(run)
    assert pretrain(run, data, *words, "data.allow_smaller_image=true") == 0
    assert newest_weights(run, TAG)[0] < BUDGET and set(sizes[2:]) == {24}
    assert pretrain(run, data, *words) == 2
    assert "has trained on smaller units" in capsys.readouterr().err
    assert pretrain(run, data, *words, "data.allow_smaller_image=true") == 0
    assert newest_weights(run, TAG)[0] == BUDGET and set(sizes[2:]) == {24}


def test_file_lists_and_numbers_choose_the_volumes(data, tmp_path):
    rows = (data / "manifest.tsv").read_text().splitlines()[1:]
    (tmp_path / "files.txt").write_text("\n".join(row.split("\t")[11] for row in rows[:5]) + "\n")
    words = (WITHOUT_RAY, "optimization.total_images=4", "optimization.warmup=0")
    assert pretrain(tmp_path / "listed", data, *words, f"data.file_list={tmp_path / 'files.txt'}") == 0
    assert Plan.open(tmp_path / "listed" / "plan").rows == 5
    assert pretrain(tmp_path / "few", data, *words, "data.max_volumes=6") == 0
    few = Plan.open(tmp_path / "few" / "plan")
    assert few.rows + len(held_out_sources(few)) == 6


def test_a_cache_folder_of_the_environment_reaches_the_workers(data, monkeypatch, tmp_path):
    from oct.config import CONFIGS_DIR
    from pathray.config.load import load_config
    from ray_jobs.pretrain_oct import PretrainOctConfig, make_paths_absolute
    from tests.builders.oct.oct_job import command

    monkeypatch.setenv("DATA_CACHE_DIR", "copies")
    monkeypatch.chdir(tmp_path)
    config = load_config(PretrainOctConfig, command(tmp_path / "run", data), configs_dir=CONFIGS_DIR).config
    assert make_paths_absolute(config).data.cache_dir == str(tmp_path / "copies")


def test_a_dry_run_of_an_index_misses_a_device_that_it_does_not_have(data, whole, tmp_path, capsys):
    from oct.config import CONFIGS_DIR
    from ray_jobs import pretrain_oct as job
    from ray_jobs.shell.cli import run_job

    words = [f"data.index={whole}/indexes/volumes.parquet", f"output={tmp_path}/run", "--dry-run"]
    assert run_job(job.main, job.PretrainOctConfig, words, CONFIGS_DIR) == 0
    assert run_job(job.main, job.PretrainOctConfig, [*words, "data.devices=[zeiss_cirrus]"], CONFIGS_DIR) == 2
    said = capsys.readouterr().err
    assert "data.devices" in said and "topcon_triton" in said and "[] for all" in said


@pytest.mark.ray
@pytest.mark.heavy
def test_two_workers_of_ray_that_are_stopped_and_resumed_end_bit_equal(data, tmp_path, ray_cluster):
    """Both ranks read their own half of each batch: another number of workers sees the same volumes at a step, so its
    losses agree up to rounding."""
    words = ("scaling.workers=2", "optimization.total_images=48", "validation.volumes=2")
    whole, run, alone = (tmp_path / name for name in ("whole", "run", "alone"))
    assert pretrain(whole, data, *words) == 0

    def stop_it() -> None:
        wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run))
        request_stop(str(run))

    stopper = threading.Thread(target=stop_it)
    stopper.start()
    assert pretrain(run, data, *words) == 0
    stopper.join()
    assert 0 < newest_weights(run, TAG)[0] < 48
    assert pretrain(run, data, *words) == 0
    assert newest_weights(run, TAG) == newest_weights(whole, TAG)
    assert pretrain(alone, data, WITHOUT_RAY, *words[1:]) == 0
    losses = [[row["loss"] for row in metrics(folder) if "loss" in row] for folder in (whole, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
