"""The job that benchmarks models: what its grid is, what it refuses, and its trials and comparison through Ray Tune."""

import json

import pytest

from ray_jobs import benchmark_models
from ray_jobs.benchmark_models import BenchmarkModelsConfig, sweep_of
from ray_jobs.shell.cli import run_job
from tests.builders.mil import write_cohort

ARGS = [
    "data.csv=slides.csv", "data.store=store", "data.threads=1", "splits.folds=3", "training.max_epochs=1",
    "training.global_batch=2", "training.batch_size_per_gpu=2", "eval.resamples=50", "logging.mlflow=false",
    "scaling.accelerator=cpu", "scaling.workers=0", "model.arguments.embed_dim=16",
]  # fmt: skip


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    write_cohort(tmp_path, patients=12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv) -> int:
    words = [f"args={json.dumps(ARGS)}", "seeds=2", "resamples=100", *argv]
    return run_job(benchmark_models.main, BenchmarkModelsConfig, words, benchmark_models.CONFIGS_DIR)


def test_the_grid_is_every_model_with_every_encoder_and_setting(tmp_path):
    space = {"training.lr": {"grid": [1e-3, 1e-4]}}
    found = sweep_of(BenchmarkModelsConfig(output=str(tmp_path), models=["abmil"], encoders=["univ1"], space=space))
    assert found.space == {"model": {"grid": ["abmil"]}, "encoder": {"grid": ["univ1"]}, **space}
    assert found.search == "grid" and found.args[-1] == "seeds=5" and found.restore is None
    assert len(sweep_of(BenchmarkModelsConfig(output=str(tmp_path))).space["model"]["grid"]) == 11
    (tmp_path / "sweep.yaml").touch()
    assert sweep_of(BenchmarkModelsConfig(output=str(tmp_path))).restore == str(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("models=[abmill]",), "abmill"),
        (("models=[abmil]", "space={model: {grid: [static]}}"), "this key has a place of its own"),
        (("models=[abmil]", "space={training.lrr: {grid: [1]}}"), "training.lrr"),
        (("models=[abmil]", "seeds=0"), "seeds"),
    ],
)
def test_what_cannot_be_trained_is_told_before_ray_starts(cohort, capsys, words, said):
    assert run(f"output={cohort}/out", *words) == 2
    assert said in capsys.readouterr().err and not (cohort / "out" / "trials").exists()


@pytest.mark.heavy
def test_models_are_trained_with_all_seeds_and_compared_on_the_same_slides(cohort, ray_cluster):
    assert run(f"output={cohort}/out", "models=[static,abmil]", "max_concurrent=1") == 0
    found = json.loads((cohort / "out" / "comparison.json").read_text())
    assert set(found["experiments"]) == {"static", "abmil"} and len(found["pairs"]) == 1
    losses = found["validation_loss"]
    assert list(losses) == sorted(losses, key=losses.get)
    for one in found["experiments"].values():
        assert one["seeds"] == 2
    assert (cohort / "out" / "leaderboard.md").read_text().count("finished") >= 2
    trials = {path: path.stat().st_mtime_ns for path in (cohort / "out").rglob("preds_test.parquet")}
    assert len(trials) == 2 * 2 * 3
    assert run(f"output={cohort}/out", "models=[static,abmil]", "max_concurrent=1") == 0
    assert trials == {path: path.stat().st_mtime_ns for path in trials}
