"""Sweeps: what is refused before Ray starts, and a small one from its space to the config that it recommends."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest

from ijepath.config import CONFIGS_DIR, GROUPS
from pathray.config.load import load_config
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.search.space import parse_space
from ray_jobs import sweep
from ray_jobs.pretrain_ijepath import PretrainConfig
from ray_jobs.shell.cli import run_job
from ray_jobs.tune.config import SweepConfig, training_job
from tests.builders.runs.run import KEYS, TAG, WITHOUT_RAY, checkpoints, metrics, write_cohort

PROFILE = "profile=ctx1p0_tgt0p5_fov512um_k4"
LR, DECAY = "optimization.lr", "optimization.weight_decay"
SPACE = {LR: {"loguniform": [1e-4, 1e-2]}}


def arguments(cohort: str, *argv: str) -> list[str]:
    """What the tiny pretraining run is typed with, where a sweep types it."""
    own = [key for key in KEYS if not key.startswith("runtime.")]
    return [*own, f"data.slide_manifest_csv={cohort}", *argv]


def command(args: list[str], *argv: str, space: dict | None = None) -> list[str]:
    return ["job=pretrain_ijepath", f"args={json.dumps(args)}", f"space={json.dumps(space or SPACE)}", *argv]


def run(*argv: str) -> tuple[int, str]:
    """Exit code, and what the job printed on either stream."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_job(sweep.main, SweepConfig, argv, sweep.CONFIGS_DIR)
    return code, out.getvalue()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> str:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.mark.parametrize(
    "argv, space, words",
    [
        (["job=pretrain_ijepaht"], None, ["key: job", "expected: 'pretrain_ijepath'"]),
        (["job=doctor"], None, ["cannot be resumed", "key: job"]),
        ([], {"optimization.lrr": {"choice": [1]}}, ["unknown key", "space.optimization.lrr", "optimization.lr'"]),
        ([], {LR: {"uniform": [-1.0, 1.0]}}, ["must be >= 0", f"space.{LR}.uniform", "-1"]),
        ([], {"model.name": {"choice": ["vit_tiny", "vit_tinny"]}}, ["space.model.name.choice", "vit_tinny"]),
        ([], {LR: {"choice": []}}, ["choices is empty", f"space.{LR}.choice"]),
        ([], {"output": {"choice": ["a"]}}, ["sets this key for each trial", "space.output"]),
        ([], {LR: {"grid": [1e-3]}}, ["does not support grids", f"space.{LR}", "search=grid"]),
        (["search=grid"], {LR: {"grid": [1e-3]}}, ["one trial per point", "key: samples"]),
        (["search=grid", "samples=null"], SPACE, ["needs a grid for every key", f"space.{LR}"]),
        (["samples=null"], None, ["`samples` is required", "key: samples"]),
        (["search=optuna"], None, ["optuna is not installed", "pathray[sweep]"]),
        (["scheduler=asha"], None, ["key: asha.grace_images"]),
        (["scheduler=asha", "asha.grace_images=8", "asha.max_images=4"], None, ["key: asha.max_images", "found: 4"]),
        (["scheduler=pbt"], None, ["key: pbt.perturbation_images"]),
        (["scheduler=pbt", "pbt.perturbation_images=8", "samples=1"], None, ["at least two trials", "key: samples"]),
        (["objective.mode=max"], None, ["keep the worst", "key: objective.mode"]),
        (["objective={metric: pathorob/camelyon/ri, mode: min}"], None, ["keep the worst", "key: objective.mode"]),
        (["objective={metric: pathorob/camelyon/ri, mode: max}"], None, ["no evaluator computes", "objective.metric"]),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_work_is_refused_by_key_before_ray_starts(
    cohort, tmp_path, monkeypatch, argv, space, words
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # where optuna is installed, too
    monkeypatch.setattr(sweep, "ray_session", None)
    output = tmp_path / "sweep"
    code, said = run(*command(arguments(cohort), f"output={output}", "samples=2", *argv, space=space))
    assert code == 2, said
    missing = [word for word in words if word not in said]
    assert not missing, said
    assert not output.exists()


@pytest.mark.parametrize(
    "args, word",
    [
        (["--dry-run"], "--dry-run"),
        (["output=elsewhere"], "output=elsewhere"),
        (["runtime.num_cpus=2"], "all trials run on the sweep's Ray"),
        (["optimization.lrr=1"], "unknown key"),
        (["data.slide_manifest_csv=missing.csv"], "missing.csv"),
    ],
)
def test_arguments_of_the_job_are_checked_as_the_job_does(cohort, tmp_path, monkeypatch, args, word):
    monkeypatch.setattr(sweep, "ray_session", None)
    code, said = run(*command(arguments(cohort, *args), f"output={tmp_path / 'sweep'}", "samples=2"))
    assert (code, word in said) == (2, True), said


def test_an_evaluators_metric_must_be_one_that_is_evaluated(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ray_session", None)
    plugins = "tuning.plugins=[{name: pathorob, datasets: {camelyon: {manifest_csv: camelyon.csv}}}]"
    args = arguments(cohort, plugins, "tuning.enable=true", "tuning.tune_every=8")
    argv = [f"output={tmp_path / 'sweep'}", "samples=2", "objective.mode=max"]
    for metric, word in (("probe/camelyon/knn", "no such plugin"), ("pathorob/tcga/ri", "no such dataset")):
        code, said = run(*command(args, f"objective.metric={metric}", *argv))
        assert code == 2 and word in said and "key: objective.metric" in said, said
    pbt = ["scheduler=pbt", "pbt.perturbation_images=12", "objective.metric=pathorob/camelyon/ri"]
    code, said = run(*command(args, *argv, *pbt))
    assert code == 2 and "a multiple of tuning.tune_every = 8" in said, said


def test_the_shipped_example_loads(cohort, tmp_path):
    config = load_config(SweepConfig, ["--config", "sweep_lr"], configs_dir=sweep.CONFIGS_DIR).config
    assert list(parse_space(config.space)) == [LR, "optimization.start_lr", DECAY]
    args = ["--config", "smoke", f"data.slide_manifest_csv={cohort}"]
    code, said = run("--config", "sweep_lr", f"output={tmp_path / 's'}", f"args={json.dumps(args)}", "--dry-run")
    assert code == 0 and "outputs:" not in said, said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("typed", "fov"), [(["--config", "smoke", PROFILE], 512.0), ([PROFILE, "--config", "smoke"], 128.0)]
)
def test_the_profile_recorded_of_a_trial_is_the_one_in_force(typed, fov):
    job = training_job("pretrain_ijepath", typed)
    data = job.load({LR: 1e-3}).config.data
    assert (data.context_fov_um, data.profile_id) == (fov, f"ctx1p0_tgt0p5_fov{fov:g}um_k4")
    varied = job.load({"data.context_fov_um": 256.0, "data.target_fov_um": 64.0}).config.data
    assert varied.profile_id == "ctx1p0_tgt0p5_fov256um_k4"


def test_what_a_profile_replaces_of_a_sweeps_run_config_is_said(cohort, tmp_path, caplog):
    args = ["--config", "smoke", PROFILE, f"data.slide_manifest_csv={cohort}"]
    code, said = run(*command(args, f"output={tmp_path / 's'}", "samples=2", "--dry-run"))
    assert code == 0 and "replaces data.context_fov_um=128.0 of" in caplog.text, said


def test_restoring_names_what_is_not_there_or_not_that_sweeps(tmp_path):
    code, said = run(f"restore={tmp_path}")
    assert code == 2 and "no sweep found" in said
    (tmp_path / "sweep.yaml").write_text(f"job: pretrain_ijepath\nsamples: 4\noutput: {tmp_path}\n")
    code, said = run(f"restore={tmp_path}", "samples=5")
    assert code == 2 and "cannot be changed" in said and "key: samples" in said
    code, said = run(*command([], f"output={tmp_path}", "samples=2"))
    assert code == 2 and "already contains a sweep" in said and f"restore={tmp_path}" in said


# --- through Tune -----------------------------------------------------------------------------------------------------
# Trials train in their own processes here; through Ray Train, too, in test_sweep_schedulers.py.


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.heavy
def test_a_grid_becomes_trials_a_leaderboard_and_a_config_that_runs(ray_cluster, cohort, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    root, lrs = tmp_path / "sweep", [1e-3, 1e-5]
    args = arguments(cohort, "logging.mlflow=true", "optimization.total_images_budget=16", WITHOUT_RAY)
    argv = [f"output={root}", "search=grid", "max_concurrent=2"]
    code, said = run(*command(args, *argv, space={LR: {"grid": lrs}}))
    assert code == 0, said
    assert said.splitlines()[-1].startswith(f"outputs: sweep={root} leaderboard={root / 'leaderboard.md'}")

    rows = list(csv.DictReader((root / "leaderboard.csv").open()))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert sorted(float(row[LR]) for row in rows) == sorted(lrs)
    runs = {row["trial"]: root / "trials" / row["trial"] for row in rows}
    assert sorted(p.name for p in (root / "trials").iterdir()) == sorted(runs)
    for row in rows:
        loss = {r["images_seen"]: r["loss"] for r in metrics(runs[row["trial"]])}
        assert list(loss) == [4, 8, 12, 16]
        assert float(row["loss best"]) == min(loss.values()) == loss[int(row["at images"])]
        assert 16 in checkpoints(runs[row["trial"]]).values()
    assert float(rows[0]["loss best"]) <= float(rows[1]["loss best"])
    assert (root / "leaderboard.md").read_text().startswith("# Sweep of pretrain_ijepath")
    assert (root / "parallel.png").read_bytes().startswith(b"\x89PNG")
    plans = [Plan.open(run / "plan").rows for run in runs.values()]
    assert plans[0] == plans[1] and not any((run / "indexes").exists() for run in runs.values())
    assert (root / "shared" / "anchor_catalog_manifest.json").exists()

    best = root / "best.yaml"
    loaded = load_config(PretrainConfig, ["--config", str(best)], configs_dir=CONFIGS_DIR, groups=GROUPS).config
    assert loaded.optimization.lr == float(rows[0][LR]) and loaded.optimization.total_images_budget == 16
    assert best.read_text().startswith("# python -m ray_jobs.pretrain_ijepath --config best.yaml output=")
    assert str(root) not in best.read_text() and loaded.data.slide_manifest_csv == cohort and loaded.output is None

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("ijepath").experiment_id])
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if r is not parent]
    assert [r.data.tags["mlflow.parentRunId"] for r in children] == [parent.info.run_id] * 2
    assert {r.info.run_name for r in children} == set(map(str, runs.values()))
    assert parent.data.params == {LR: str(float(rows[0][LR]))} and parent.info.status == "FINISHED"
    assert parent.data.metrics["loss"] == pytest.approx(float(rows[0]["loss best"]))


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.heavy
def test_a_trial_that_fails_is_told_and_a_sweep_of_failures_is_the_users_error(ray_cluster, cohort, tmp_path):
    root = tmp_path / "sweep"
    args = arguments(cohort, "data.sampling_stratum_weights={nowhere: 1.0}", WITHOUT_RAY)
    code, said = run(*command(args, f"output={root}", "samples=1"))
    assert code == 2 and "nowhere" in said, said
    (row,) = csv.DictReader((root / "leaderboard.csv").open())
    assert row["status"] == "failed" and "nowhere" in row["error"] and row["loss best"] == ""
    assert not (root / "best.yaml").exists()


def test_a_run_goes_on_with_changed_values_only_where_they_are_named(tmp_path):
    from pathray.fingerprint import fingerprint
    from pathray.run.resume import check_resumable
    from pathray.store.committed import Committed

    then = fingerprint({"optimization": {"lr": 1, "ema": [0.9, 1]}, "plan": "a"})
    now = fingerprint({"optimization": {"lr": 2, "ema": [0.9, 1]}, "plan": "a"})
    found = Committed(str(tmp_path), f"{TAG}-img8", 0.0, {}, {"identity": then})
    check_resumable(found, then)
    check_resumable(found, now, [LR])
    check_resumable(found, now, ["optimization"])
    for changes in ([], ["plan"], ["optimization.l"]):
        with pytest.raises(UserError, match="optimization.lr: 1 in the checkpoint, 2 now"):
            check_resumable(found, now, changes)
    assert found.meta["identity"] == then, "what the checkpoint says stays"
    assert Path(found.path) == tmp_path
