"""`scaling.workers=0`: the training jobs without Ray, in processes of their own, where nothing may import it."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pathray.config.sections import ScalingConfig
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.run.stop import request_stop
from ray_jobs.extract.actor_map import ActorMap
from ray_jobs.extract.ordered_map import RayMap
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.resources import resolve_accelerator
from ray_jobs.train.trainer import begin, fit
from ray_jobs.train.training_jobs import check_tuning
from tests.builders.jobs import job_environment, wait_for
from tests.builders.runs import adios_job as adios
from tests.builders.runs import run as tiny
from tests.builders.runs import toy_run
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan
from tests.builders.zips import write_folder
from tests.ray_jobs.train.regression import test_regression_jobs as regression

RUN = """
import runpy, sys
module = sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert "ray" not in sys.modules, "Ray was imported"
    raise
"""
NO_RAY = tiny.WITHOUT_RAY


def start(module: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, module, *words],
        env=job_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(job: subprocess.Popen[str]) -> str:
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said
    return said


def test_a_signal_checkpoints_and_the_same_command_ends_bit_equal(tmp_path, tmp_path_factory):
    whole, run = tiny.undisturbed(tmp_path_factory.getbasetemp()), tmp_path / "run"
    job = start("ray_jobs.pretrain_ijepath", *tiny.command(run, whole.manifest, NO_RAY))
    wait_for(lambda: (run / "metrics.jsonl").exists() and tiny.metrics(run))
    job.send_signal(signal.SIGTERM)
    said = finish(job)
    assert "built now: slide index, anchor catalog, plan" in said
    assert "waiting for the step in progress and a checkpoint" in said
    assert tiny.weights(run)[0] <= tiny.BUDGET
    assert tiny.pretrain(run, whole.manifest, NO_RAY) == 0
    assert tiny.weights(run) == tiny.weights(whole.folder)
    assert [row["images_seen"] for row in tiny.metrics(run)] == list(range(4, tiny.BUDGET + 1, 4))
    tiny.discard(run)


def test_adios_trains_from_a_folder_of_zips(tmp_path):
    write_folder(tmp_path / "zips")
    words = adios.command(tmp_path / "run", tmp_path / "zips", NO_RAY)
    said = finish(start("ray_jobs.pretrain_adios", *words))
    assert "mask_model=" in said and max(adios.checkpoints(tmp_path / "run")) == 16


def test_a_frozen_regression_computes_its_features_trains_and_is_evaluated(tmp_path):
    table = regression.write_images(tmp_path)
    assert regression.split(table, tmp_path / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    words = [*regression.KEYS, f"data.table={table}", f"data.split={tmp_path / 'split.csv'}", NO_RAY]
    words += [f"output={tmp_path / 'out'}", "model.frozen=true"]
    finish(start("ray_jobs.train_regression", *words))
    (run,) = regression.runs(tmp_path / "out")
    assert (run / "metrics.json").exists() and (run / "encoder").is_dir() and (run / "summary.md").exists()


def test_out_of_memory_trains_on_in_smaller_micro_batches(tmp_path):
    plan = write_plan(tmp_path / "plan")
    run = tmp_path / "run"
    run.mkdir()
    config = ToyConfig(run=str(run), micro_batch=6, memory_for=1, memory_from_step=3, save_every=12)
    scaling = ScalingConfig(workers=0, accelerator="cpu")
    outcome = fit(TrainJob(assemble, config, plan.path, str(run), scaling, tracking=Tracking(mlflow=False)))
    assert outcome.end == "budget"
    assert toy_run.positions_by_step(run) == {s: set(range(12 * s, 12 * s + 12)) for s in range(8)}
    assert {len(line["position"]) for line in toy_run.seen(run) if line["step"] > 3} == {1}


def test_a_stop_asked_for_while_a_job_prepares_holds(tmp_path):
    plan, run, scaling = write_plan(tmp_path / "plan"), tmp_path / "run", ScalingConfig(workers=0, accelerator="cpu")
    run.mkdir()
    request_stop(str(run))
    assert begin(str(run), scaling) == "cpu" and not (run / "STOP").exists(), "one from before the job is void"
    request_stop(str(run))
    config, tracking = ToyConfig(run=str(run)), Tracking(mlflow=False)
    outcome = fit(TrainJob(assemble, config, plan.path, str(run), scaling, tracking=tracking, accelerator="cpu"))
    assert outcome.end == "stopped" and outcome.images_seen < 96


def test_what_is_wrong_with_the_data_ends_the_job_with_its_report(tmp_path):
    plan, run = Plan.open(write_plan(tmp_path / "plan").path), tmp_path / "run"
    run.mkdir()
    config = ToyConfig(run=str(run), unreadable_every=2, max_corrupt_fraction=0.1)
    job = TrainJob(assemble, config, plan.path, str(run), ScalingConfig(workers=0), tracking=Tracking(mlflow=False))
    with pytest.raises(UserError, match="of 24 units up to step 2 were replaced"):
        fit(job)
    assert (run / "quarantine.parquet").exists() and not (run / "encoder").exists()


def test_evaluations_during_training_need_ray():
    config = SimpleNamespace(tuning=SimpleNamespace(enable=True, plugins=()), scaling=ScalingConfig(workers=0))
    with pytest.raises(UserError, match="evaluations during training need Ray"):
        check_tuning(config)


def test_auto_is_what_this_machine_has_where_no_ray_runs(monkeypatch):
    monkeypatch.setattr("ray_jobs.train.resources.is_ray_running", lambda: False)
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    for has_gpu, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert resolve_accelerator("auto") == kind


def test_maps_work_in_this_process_without_a_running_ray(monkeypatch):
    for module in ("ordered_map", "actor_map"):
        monkeypatch.setattr(f"ray_jobs.extract.{module}.is_ray_running", lambda: False)
    assert list(RayMap(lambda item, error: None)(lambda x: 2 * x, iter([3, 1]))) == [6, 2]
    assert list(ActorMap(2)(lambda: lambda x: x + 1, [3, 1])) == [(0, 4), (1, 2)]
