"""Sweeps over a job that keeps several runs below its output: where a trial's run is, what its objective may be."""

import csv
import json
import threading

import pytest

from pathray.config.load import load_config
from pathray.search.objective import Objective
from pathray.store.committed import committed_dir
from pathray.store.storage import Storage
from pathray.train.state import TrainState
from ray_jobs import sweep, train_regression
from ray_jobs.tune.config import TrainingJob, training_job
from ray_jobs.tune.sweep_run import TrialRun
from ray_jobs.tune.trial import SweepTrial, TrialSettings
from regression.config import CONFIGS_DIR
from tests.builders.expression import made, write_images
from tests.builders.jobs import wait_for
from tests.builders.runs.run import metrics
from tests.ray_jobs.train.regression.test_regression_jobs import KEYS, split
from tests.ray_jobs.tune.test_sweep import run

GRID = {"train.lr": {"grid": [1e-3, 1e-4]}}


@pytest.fixture(scope="module")
def args(tmp_path_factory) -> list[str]:
    """What a tiny regression is typed with."""
    folder = tmp_path_factory.mktemp("expression")
    table = write_images(folder)
    assert split(table, folder / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    return [*KEYS, "eval.baselines=false", f"data.table={table}", f"data.split={folder / 'split.csv'}"]


def command(args: list[str], *argv: str, job: str = "train_regression") -> list[str]:
    return [f"job={job}", f"args={json.dumps(args)}", f"space={json.dumps(GRID)}", "search=grid", *argv]


@pytest.mark.parametrize("name", ["pretrain_ijepath", "pretrain_adios", "train_regression"])
def test_the_folder_of_a_trial_is_the_folder_of_its_run_for_every_training_job(name, args, tmp_path):
    job, folder = training_job(name, args if name == "train_regression" else ()), f"{tmp_path}/trials/a"
    words = dict(word.split("=", 1) for word in job.words_for(folder))
    if name != "train_regression":
        assert words == {"output": folder}
        return
    config = train_regression.make_paths_absolute(job.load({}, *job.words_for(folder)).config)
    assert train_regression.run_of(config, train_regression.plan_of(config)).folder == folder


@pytest.mark.parametrize(
    "argv, words",
    [
        (["objective={metric: val/spearmann, mode: max}"], ["does not compute this", "val/spearman, val/pearson"]),
        (["objective.metric=val/spearman"], ["keep the worst", "key: objective.mode", "expected: 'max'"]),
        (["objective={metric: pathorob/x/ri, mode: max}"], ["no evaluator computes", "objective.metric"]),
    ],
)
def test_an_objective_that_a_regression_will_not_have_is_refused(args, tmp_path, monkeypatch, argv, words):
    monkeypatch.setattr(sweep, "ray_session", None)
    code, said = run(*command(args, f"output={tmp_path / 'sweep'}", *argv))
    assert code == 2 and all(word in said for word in words), said
    assert not (tmp_path / "sweep").exists()


def test_a_metric_of_validation_is_refused_for_a_job_that_does_not_validate(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ray_session", None)
    space = {"optimization.lr": {"grid": [1e-3]}}
    words = ["job=pretrain_ijepath", "args=[--config, smoke]", f"space={json.dumps(space)}", "search=grid"]
    code, said = run(*words, f"output={tmp_path / 's'}", "objective={metric: val/mse, mode: min}")
    assert code == 2 and "this job does not validate" in said, said


def test_a_sweep_over_the_folds_of_a_cross_validation_is_refused_with_what_to_do_instead(args, tmp_path):
    code, said = run(*command(args, f"output={tmp_path / 'sweep'}", job="train_folds"))
    assert code == 2 and "key: job" in said and "no objective" in said, said
    assert "job=train_regression" in said and "train_folds with the values of best.yaml" in said


def test_the_name_of_a_trials_run_is_the_sweeps_own(args, tmp_path):
    code, said = run(*command([*args, "logging.run_name=mine"], f"output={tmp_path / 'sweep'}"))
    assert code == 2 and "sets this key for each trial" in said and "logging.run_name=mine" in said, said


@pytest.mark.parametrize("more", [[], ["eval.samplewise=true"]])
def test_the_metrics_that_an_objective_may_name_are_those_of_validation(more, args, tmp_path):
    from pathray.device import Device
    from regression.assembly import assemble, loop_settings
    from regression.config import resolve

    words = [*args, *more, f"output={tmp_path}"]
    config = load_config(train_regression.TrainRegressionConfig, words, configs_dir=CONFIGS_DIR).config
    plan = made(tmp_path)[2]
    ready = resolve(config, 1, plan.rows)
    parts = assemble(ready, plan, 1)
    state = TrainState(parts.recipe, loop_settings(ready, 1), Device.of("cpu"))
    found = sorted(f"val/{name}" for name in parts.validate(state))
    assert found == sorted(train_regression.validation_metrics(config))
    assert all(
        Objective(name, "max" if "man" in name or "son" in name else "min").source == "metrics.jsonl" for name in found
    )


@pytest.mark.parametrize("text", ["optimization: {total_images_budget: 64}", "train: {images: 64}", "total_images: 64"])
def test_the_budget_of_a_trial_is_read_from_every_sciences_resolved_config(text, tmp_path):
    (tmp_path / "config_resolved.yaml").write_text(text)
    assert TrialRun(TrainingJob("x", ()), "a", {}, str(tmp_path), (), Objective()).budget == 64


def test_in_a_population_of_regressions_every_checkpoint_stays_and_is_a_snapshot(args, tmp_path):
    job = training_job("train_regression", args)
    words = sweep._snapshot_words(job, 16)
    config = job.load({}, *words).config.checkpoint
    assert (config.latest_every, config.keep_last_n) == (16, sweep.KEEP_ALL)
    trial = SweepTrial.__new__(SweepTrial)
    trial.settings = TrialSettings(str(tmp_path), job, ("train.lr",), Objective(), tuple(words), str(tmp_path), 16)
    trial.sweep, trial.folder, trial.donor = Storage.of(tmp_path), "trials/a", ""
    for images, name in ((16, "regression-latest"), (16, "regression-best"), (32, "regression-latest")):
        with committed_dir(str(tmp_path / "trials/a/checkpoints"), name, {"images_seen": images}) as written:
            written.write_bytes("tensors", b"")
    assert sorted((c.name, c.meta["images_seen"]) for c in trial._snapshots()) == [
        ("regression-latest", 16), ("regression-latest", 32),
    ]  # fmt: skip


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.heavy
def test_a_sweep_over_a_regression_stops_is_restored_and_finds_its_objective(ray_cluster, args, tmp_path):
    root, metric = tmp_path / "sweep", "val/spearman"
    argv = [f"output={root}", f"objective={{metric: {metric}, mode: max}}", "max_concurrent=2"]

    def stop() -> None:
        wait_for(lambda: list(root.glob("trials/*/metrics.jsonl")), 240)
        (root / "STOP").write_text('{"reason": "asked to"}')

    stopper = threading.Thread(target=stop)
    stopper.start()
    code, said = run(*command([*args, "train.images=800", "eval.every=400", "scaling.workers=0"], *argv))
    stopper.join()
    assert code == 0 and "unfinished" in (root / "leaderboard.md").read_text(), said
    before = {path.parent.name: metrics(path.parent)[-1]["images_seen"] for path in root.glob("trials/*/metrics.jsonl")}
    assert before and max(before.values()) < 800, "the trials' own runs were reached"

    code, said = run(f"restore={root}")
    assert code == 0, said
    rows = list(csv.DictReader((root / "leaderboard.csv").open()))
    assert [row["status"] for row in rows] == ["finished"] * 2 and len({row["train.lr"] for row in rows}) == 2
    for row in rows:
        folder = root / "trials" / row["trial"]
        found = {r["images_seen"]: r[metric] for r in metrics(folder) if metric in r}
        assert list(found) == [400, 800] and float(row[f"{metric} best"]) == max(found.values())
        assert json.loads((folder / "metrics.json").read_text())["end"] == "budget"
    assert {path.name for path in (root / "trials").iterdir()} == {"plans", *(row["trial"] for row in rows)}
    best = load_config(train_regression.TrainRegressionConfig, ["--config", str(root / "best.yaml")], configs_dir=root)
    assert best.config.train.lr == float(rows[0]["train.lr"]) and best.config.logging.run_name is None
