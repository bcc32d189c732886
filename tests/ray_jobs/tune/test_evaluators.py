"""Evaluations through Tune beside a tiny training, and of a run on storage: each once, and nothing is disturbed."""

import json
from pathlib import Path

import pytest
import torch

from pathray.config.load import load_config
from pathray.errors import UserError
from pathray.evaluation.results import BEST, ROWS, read_decision
from pathray.evaluation.settings import ExecutionConfig
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from pathray.store.committed import list_committed
from pathray.store.metrics_log import rows_of
from ray_jobs import evaluate
from ray_jobs.shell.cli import run_job
from ray_jobs.tune.evaluation_resources import request_of
from tests.builders.patches import write_patches, write_tuning
from tests.builders.runs.run import BUDGET, TAG, discard, metrics, pretrain, undisturbed, weights, write_cohort

RI = "pathorob/hospitals/ri"
STOPPING = (
    "early_stopping: {enable: true, selection: {plugin: pathorob, dataset: hospitals, metric: ri},"
    " patience_evals: 2, min_evals: 2}"
)


def rows(run) -> list[dict]:
    return sorted(rows_of((Path(run) / ROWS).read_bytes()), key=lambda row: row["images_seen"])


def evaluated(run, *argv: str) -> int:
    return run_job(evaluate.main, evaluate.EvaluateConfig, [*argv], evaluate.CONFIGS_DIR)


# --- beside a training ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(ray_cluster, tmp_path_factory):
    """(run folder, its manifest of patches): the tiny run with evaluations every 8 images of 32, and MLflow."""
    base, whole = tmp_path_factory.mktemp("tuned"), undisturbed(tmp_path_factory.getbasetemp())
    manifest = write_patches(base / "patches")
    tuning = write_tuning(base / "tuning.yaml", manifest, execution="max_pending_jobs: 9, keep_last_n_snapshots: 2")
    assert pretrain(base / "run", whole.manifest, "--config", tuning, "logging.mlflow=true") == 0
    yield base / "run", manifest, whole
    discard(base / "run")


@pytest.mark.ray
def test_every_snapshot_from_the_baseline_to_the_end_is_judged_before_the_job_ends(tuned):
    found = rows(tuned[0])
    assert [(row["images_seen"], row["tune/tune_index"], row["status"]) for row in found] == [
        (0, 0, "ok"), (8, 1, "ok"), (16, 2, "ok"), (24, 3, "ok"), (32, 4, "ok"),
    ]  # fmt: skip
    assert all(0 <= row[RI] <= 1 for row in found)
    assert [("pathorob/hospitals/clustering_score" in row) for row in found] == [True, False, True, False, True]
    logged = {"tune/queue_depth", "tune/dropped", "tune/lag_images", "tune/lag_s", "tune/evaluator_s"}
    assert all(logged <= row.keys() and row["tune/lag_s"] > 0 for row in found)


@pytest.mark.ray
def test_a_worker_of_ray_beside_evaluations_ends_with_the_bits_of_a_run_without_ray(tuned):
    run, _, whole = tuned
    assert weights(run) == weights(whole.folder)
    assert [row["loss"] for row in metrics(run) if "loss" in row] == [row["loss"] for row in metrics(whole.folder)]


@pytest.mark.ray
def test_the_time_that_snapshots_take_from_the_training_is_measured(tuned):
    last = metrics(tuned[0])[-1]
    assert 0 < last["tune/blocked_s"] < 30 and 0 < last["tune/blocked_share"] < 1


@pytest.mark.ray
def test_a_snapshot_carries_the_teacher_of_its_own_step(tuned):
    newest = checkpoint.latest(str(tuned[0] / "checkpoints"), TAG)
    vit, about = EncoderArtifact.load(f"{newest.path}/encoder")
    tensors, _ = checkpoint.load(newest.path)
    assert about["provenance"]["images_seen"] == BUDGET == newest.meta["images_seen"]
    assert all(torch.equal(value, tensors[f"model.teacher.{name}"]) for name, value in vit.state_dict().items())


@pytest.mark.ray
def test_judged_snapshots_are_removed_but_the_newest(tuned):
    left = [c.meta["images_seen"] for c in list_committed(str(tuned[0] / "checkpoints")) if "-img" in c.name]
    assert sorted(left) == [24, 32]


@pytest.mark.ray
def test_mlflow_has_the_evaluations_on_the_image_axis_of_the_same_run(tuned):
    from mlflow import MlflowClient

    run = json.loads((tuned[0] / "mlflow_run.json").read_text())
    client = MlflowClient(run["tracking_uri"])
    points = {m.step: m.value for m in client.get_metric_history(run["run_id"], RI)}
    assert points == {row["images_seen"]: row[RI] for row in rows(tuned[0])}
    assert {m.step for m in client.get_metric_history(run["run_id"], "loss")} >= {8, 16, 24, 32}
    assert {m.step for m in client.get_metric_history(run["run_id"], "tune/lag_images")} == set(points)


@pytest.mark.ray
def test_the_report_is_a_page_beside_the_results(tuned):
    page = (tuned[0] / "robustness" / "report.html").read_text()
    assert "hospitals" in page and "data:image/png;base64," in page
    assert len(list((tuned[0] / "robustness" / "embeddings").glob("hospitals-img*.parquet"))) == 5


@pytest.mark.ray
def test_watching_a_run_that_is_judged_doubles_nothing(tuned):
    before = rows(tuned[0])
    assert evaluated(tuned[0], f"watch={tuned[0]}", "idle_minutes=0", "mlflow=false") == 0
    assert rows(tuned[0]) == before


@pytest.mark.ray
def test_watching_goes_on_where_a_killed_evaluator_stopped_and_drops_nothing_of_a_run_that_has_ended(tuned, capsys):
    run = tuned[0]
    kept = (run / ROWS).read_bytes()
    lost = [line for line in kept.splitlines(keepends=True) if json.loads(line)["images_seen"] in (0, 8, 16)]
    try:
        (run / ROWS).write_bytes(b"".join(lost))
        argv = (f"watch={run}", "idle_minutes=0", "mlflow=false", "tuning.execution.max_pending_jobs=1")
        assert evaluated(run, *argv) == 0
        again = rows(run)
        assert [(row["images_seen"], row["status"]) for row in again[3:]] == [(24, "ok"), (32, "ok")]
        assert [row[RI] for row in again] == [json.loads(line)[RI] for line in sorted(kept.splitlines(), key=_images)]
        assert f"robustness={run / ROWS}" in capsys.readouterr().out
    finally:
        (run / ROWS).write_bytes(kept)


def _images(line: bytes) -> int:
    return json.loads(line)["images_seen"]


@pytest.mark.ray
def test_an_image_that_cannot_be_read_is_named_and_the_evaluation_recorded_as_failed(tuned, tmp_path, capsys):
    manifest = write_patches(tmp_path / "patches")
    (tmp_path / "patches" / "south_gland_1_1.png").write_bytes(b"no picture")
    tuning = write_tuning(tmp_path / "tuning.yaml", manifest)
    argv = (f"snapshot={tuned[0] / 'encoder'}", f"output={tmp_path / 'out'}", "--config", tuning, "mlflow=false")
    assert evaluated(tuned[0], *argv) == 2
    assert "south_gland_1_1.png" in capsys.readouterr().err
    (row,) = rows(tmp_path / "out")
    assert row["status"] == "failed" and "south_gland_1_1.png" in row["error"]


# --- sync, and early stopping -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(ray_cluster, tmp_path_factory):
    """A run whose evaluations it waits for, and whose index does not get better: patience of two."""
    base = tmp_path_factory.mktemp("stopped")
    slides, manifest = write_cohort(base / "cohort"), write_patches(base / "patches", slides=2, patches=2)
    tuning = write_tuning(base / "tuning.yaml", manifest, every=4, more=STOPPING, execution="mode: sync")
    argv = ("--config", tuning, "optimization.lr=1e-7", "optimization.start_lr=1e-8", "optimization.final_lr=1e-8")
    assert pretrain(base / "run", slides, *argv) == 0
    yield base / "run", slides, argv
    discard(base / "run")


@pytest.mark.ray
@pytest.mark.heavy
def test_early_stopping_ends_the_training_after_its_patience_and_says_where(stopped):
    decision = read_decision(str(stopped[0]))
    assert decision["stop"] and decision["metric"] == RI and decision["best_images"] == 0
    newest = checkpoint.latest(str(stopped[0] / "checkpoints"), TAG)
    assert decision["decided_at_images"] == 8 < newest.meta["images_seen"] <= 16 < BUDGET
    assert (
        EncoderArtifact.load(str(stopped[0] / "encoder"))[1]["provenance"]["images_seen"] == newest.meta["images_seen"]
    )


@pytest.mark.ray
@pytest.mark.heavy
def test_in_sync_mode_no_evaluation_is_dropped_and_each_is_there_before_the_next_step(stopped):
    found = rows(stopped[0])
    assert [row["status"] for row in found] == ["ok"] * len(found) and len(found) >= 3
    assert all(row["tune/lag_images"] == 0 for row in found)
    assert metrics(stopped[0])[-1]["tune/blocked_s"] > 0.1


@pytest.mark.ray
@pytest.mark.heavy
def test_the_best_snapshot_is_a_copy_with_its_encoder(stopped):
    (best,) = list_committed(str(stopped[0] / "checkpoints"), BEST)
    assert best.meta["images_seen"] == 0
    assert EncoderArtifact.load(f"{best.path}/encoder")[1]["provenance"]["images_seen"] == 0


@pytest.mark.ray
@pytest.mark.heavy
def test_a_run_that_early_stopping_has_ended_is_left_as_it_is_by_the_same_command(stopped, capsys):
    run, manifest, argv = stopped
    before = weights(run)
    assert pretrain(run, manifest, *argv) == 0
    assert weights(run) == before and "best=" in capsys.readouterr().out


# --- without Ray ------------------------------------------------------------------------------------------------------


def config(*argv: str) -> evaluate.EvaluateConfig:
    return load_config(evaluate.EvaluateConfig, list(argv), configs_dir=evaluate.CONFIGS_DIR).config


@pytest.mark.parametrize(
    ("execution", "accelerator", "gpus", "taken", "expected"),
    [
        ({}, "cpu", 0, 0, ({"CPU": 1.0}, "cpu")),
        ({}, "cpu", 4, 0, ({"CPU": 1.0}, "cpu")),
        ({}, "xla", 0, 0, ({"CPU": 1.0}, "cpu")),
        ({}, "cuda", 4, 3, ({"CPU": 1.0, "GPU": 1.0}, "cuda")),
        ({}, "cuda", 1, 0.75, ({"CPU": 1.0, "GPU": 0.25}, "cuda")),
        ({}, "cuda", 1, 1, ({"CPU": 1.0}, "cpu")),
        ({"device": "cpu"}, "cuda", 4, 3, ({"CPU": 1.0}, "cpu")),
        ({"gpus": 0.5, "cpus": 2}, "cuda", 2, 1.5, ({"CPU": 2, "GPU": 0.5}, "cuda")),
        ({"device": "cuda:1"}, "cuda", 2, 1, ({"CPU": 1.0, "GPU": 1.0}, "cuda")),
    ],
)
def test_an_evaluation_takes_what_the_training_leaves(execution, accelerator, gpus, taken, expected):
    found = request_of(ExecutionConfig(**execution), accelerator, {"GPU": gpus}, taken)
    assert (dict(found.resources), found.accelerator) == expected


def test_a_training_on_every_gpu_is_told_that_evaluations_run_on_the_cpu():
    assert "one worker fewer" in request_of(ExecutionConfig(), "cuda", {"GPU": 4}, 4).advice
    assert "gpus_per_worker" in request_of(ExecutionConfig(), "cuda", {"GPU": 1}, 1).advice


def test_a_gpu_that_is_not_there_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"tuning\.execution\.device.*0 of 1 GPUs"):
        request_of(ExecutionConfig(device="cuda:0"), "cuda", {"GPU": 1}, 1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "watch=RUN or snapshot=FOLDER"),
        (("watch=a", "snapshot=b"), "watch=RUN or snapshot=FOLDER"),
        (("snapshot=a",), "output=FOLDER"),
        (("watch=nowhere",), "no run found"),
        (("snapshot=nowhere", "output=out"), "no encoder here"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_ray_starts(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluated(None, *argv) == 2
    assert words in capsys.readouterr().err


def test_a_run_without_evaluators_of_its_own_wants_some(tmp_path, capsys):
    (tmp_path / "config_resolved.yaml").write_text("tuning: {enable: false, plugins: []}\n")
    assert evaluated(None, f"watch={tmp_path}") == 2
    assert "tuning.plugins" in capsys.readouterr().err


def test_a_dataset_without_a_manifest_is_named_by_its_key(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert evaluated(None, "--config", "evaluate_camelyon", f"watch={tmp_path}") == 2
    assert "tuning.plugins[0].datasets.camelyon.manifest_csv" in capsys.readouterr().err


def test_a_failing_evaluation_is_tried_again_and_then_reported_with_its_error(monkeypatch):
    from ray_jobs.tune import evaluation_trial

    calls = []

    def fails(config, spec):
        calls.append(config)
        raise RuntimeError("no memory")

    monkeypatch.setattr(evaluation_trial, "evaluate_once", fails)
    spec = evaluation_trial.TrialSpec((), "run", "cpu", 1, retries=2)
    found = evaluation_trial.evaluate_with_retries({"encoder": "e"}, spec)
    assert len(calls) == 3 and found["error"] == "RuntimeError: no memory" and "Traceback" in found["trace"]


def test_an_evaluation_that_cannot_succeed_is_not_tried_again(monkeypatch):
    from ray_jobs.tune import evaluation_trial

    calls = []

    def fails(config, spec):
        calls.append(config)
        raise UserError("no such image", file="a.png")

    monkeypatch.setattr(evaluation_trial, "evaluate_once", fails)
    found = evaluation_trial.evaluate_with_retries(
        {"encoder": "e"}, evaluation_trial.TrialSpec((), "run", "cpu", 1, retries=2)
    )
    assert len(calls) == 1 and "a.png" in found["error"]
