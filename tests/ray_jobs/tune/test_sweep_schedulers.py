"""Sweeps with ASHA, with PBT and over an evaluator's metric: interrupted, restored, branched, judged. Minutes long."""

import csv
import json
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pathray.store import checkpoint
from pathray.store.committed import list_committed, read_committed
from tests.builders.jobs import ROOT, job_command, job_environment, kill_job, wait_for
from tests.builders.patches import write_patches, write_tuning
from tests.builders.runs.run import TAG, metrics, write_cohort
from tests.ray_jobs.tune.test_sweep import LR, arguments, command, run

pytestmark = [pytest.mark.ray, pytest.mark.heavy, pytest.mark.integration]
# A run trains in its trial's process, and saves nothing in between but the snapshots of a population.
IN_TRIAL = ("scaling.workers=0", "checkpoint.latest_every=1000")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> str:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def board(root: Path) -> list[dict[str, str]]:
    with (root / "leaderboard.csv").open() as f:
        return list(csv.DictReader(f))


def seen(root: Path) -> dict[str, int]:
    """Folder of a run → images seen at its newest row."""
    files = sorted((root / "trials").glob("*/metrics.jsonl"))
    return {file.parent.name: rows[-1]["images_seen"] for file in files if (rows := metrics(file.parent))}


def test_trials_with_asha_interrupted_and_restored_are_neither_lost_nor_doubled(ray_cluster, cohort, tmp_path):
    """Interrupted by a signal, in a process of its own, with one trial running and one that has not begun; restored on
    another Ray. Trials next to each other are interrupted in test_sweep_regression.py."""
    root, log = tmp_path / "sweep", tmp_path / "first.log"
    args = arguments(cohort, "optimization.total_images_budget=64", *IN_TRIAL)
    asha = ["scheduler=asha", "asha={grace_images: 8, reduction_factor: 2.0}"]
    argv = command(args, "samples=2", "seed=3", *asha, f"output={root}", "max_concurrent=1")
    with log.open("w") as out:
        first = subprocess.Popen(
            job_command("ray_jobs.sweep", *argv), cwd=ROOT, env=job_environment(), stdout=out, stderr=out
        )
    try:
        wait_for(lambda: first.poll() is not None or seen(root), 240, 0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(400) == 0 and f"restore={root}" in log.read_text(), log.read_text()
    finally:
        if first.poll() is None:
            kill_job(first)
    before = board(root)
    assert "unfinished" in {row["status"] for row in before}, "nothing was interrupted"
    saved = {name: checkpoint.latest(str(root / "trials" / name / "checkpoints"), TAG) for name in seen(root)}
    began = {name: found.meta["images_seen"] for name, found in saved.items() if found is not None}
    assert began and all(images == seen(root)[name] for name, images in began.items()), "runs end with a checkpoint"

    code, said = run(f"restore={root}")
    assert code == 0, said
    after = board(root)
    assert len(after) == 2 and {row["trial"] for row in before} <= {row["trial"] for row in after}
    assert sorted(p.name for p in (root / "trials").iterdir()) == sorted(row["trial"] for row in after)
    assert {row["status"] for row in after} <= {"finished", "stopped"} and len({row[LR] for row in after}) == 2
    for row in after:
        images = [r["images_seen"] for r in metrics(root / "trials" / row["trial"])]
        assert images == list(range(4, images[-1] + 1, 4)), "every step once"
        assert images[-1] == 64 if row["status"] == "finished" else images[-1] >= 8
    assert any(row["status"] == "finished" for row in after)
    for name, images in began.items():
        assert metrics(root / "trials" / name)[-1]["images_seen"] >= images
    assert json.loads((root / "trials.json").read_text())[0]["error"] is None


def test_in_a_population_the_worst_goes_on_from_the_best_ones_weights_with_its_value_changed(
    ray_cluster, cohort, tmp_path
):
    root = tmp_path / "sweep"
    budget, every = 192, 32  # long enough for one to wait for the other
    args = arguments(cohort, f"optimization.total_images_budget={budget}", *IN_TRIAL)
    space = {LR: {"loguniform": [1e-6, 1e-2]}}
    argv = ["samples=2", "scheduler=pbt", f"pbt={{perturbation_images: {every}, quantile: 0.5}}", f"output={root}"]
    code, said = run(*command(args, *argv, "max_concurrent=2", space=space))
    assert code == 0, said
    rows = board(root)
    assert [row["status"] for row in rows] == ["finished"] * 2, said
    runs = {path.parent.name: json.loads(path.read_text()) for path in (root / "trials").glob("*/trial.json")}
    assert Counter(record["trial"] for record in runs.values()).keys() == {row["trial"] for row in rows}
    branches = {name: record for name, record in runs.items() if "-from-" in name}
    assert branches, "nobody took over another's weights"
    assert max(seen(root).values()) == budget
    for name, record in branches.items():
        donor = name.partition("-from-")[2].rpartition("-img")[0]
        images = int(name.rpartition("-img")[2])
        assert donor != record["trial"] and images in range(every, budget, every)
        rows_of_branch = metrics(root / "trials" / name)
        assert [r["images_seen"] for r in rows_of_branch][0] == images + 4, "it resumes where the donor was"
        own = [read_committed(c.path).meta for c in list_committed(str(root / "trials" / name / "checkpoints"))]
        assert own and {m["identity"]["values"][LR] for m in own} == {record["values"][LR]}
        assert 1e-6 <= record["values"][LR] <= 1e-2
        donors = [r["values"][LR] for other, r in runs.items() if r["trial"] == donor and other != name]
        assert record["values"][LR] not in donors


def test_an_evaluators_metric_is_the_objective_and_each_trial_may_have_anchors_of_its_own(
    ray_cluster, cohort, tmp_path
):
    root, metric = tmp_path / "sweep", "pathorob/hospitals/ri"
    tuning = write_tuning(tmp_path / "tuning.yaml", write_patches(tmp_path / "patches"), every=16)
    args = ["--config", tuning, *arguments(cohort, "optimization.total_images_budget=16")]
    space = {"data.anchor_stride_fraction": {"grid": [0.5, 1.0]}}
    argv = [f"objective={{metric: {metric}, mode: max}}", "search=grid", f"output={root}", "max_concurrent=2"]
    code, said = run(*command(args, *argv, space=space))
    assert code == 0, said
    rows = board(root)
    assert [row["status"] for row in rows] == ["finished"] * 2, said
    for row in rows:
        folder = root / "trials" / row["trial"]
        judged = [json.loads(line) for line in (folder / "robustness.jsonl").read_text().splitlines()]
        assert {r["images_seen"] for r in judged} == {0, 16}
        assert float(row[f"{metric} best"]) == max(r[metric] for r in judged if metric in r)
        assert (folder / "indexes" / "anchor_catalog_manifest.json").exists(), "the stride is the trial's own"
    assert (root / "shared" / "slide_metadata.parquet").exists()
    assert not (root / "shared" / "anchor_catalog_manifest.json").exists()
