"""Sweeps with ASHA and with PBT, in processes of their own: interrupted, restored, branched. Minutes long."""

import csv
import json
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pathray.store import checkpoint
from pathray.store.committed import list_committed, read_committed
from tests.builders.jobs import ROOT, job_command, job_environment, wait_for
from tests.builders.patches import write_patches, write_tuning
from tests.builders.runs.run import TAG, metrics, write_cohort
from tests.ray_jobs.tune.test_sweep import LR, arguments, command

pytestmark = [pytest.mark.heavy, pytest.mark.integration]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> str:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


class Sweep:
    """A sweep job in a process of its own."""

    def __init__(self, log: Path, *argv: str) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                job_command("ray_jobs.sweep", *argv), cwd=ROOT, env=job_environment(), stdout=out, stderr=out
            )

    def end(self, seconds: float = 400.0) -> int:
        return self.process.wait(seconds)

    def said(self) -> str:
        return self.log.read_text()


def board(root: Path) -> list[dict[str, str]]:
    with (root / "leaderboard.csv").open() as f:
        return list(csv.DictReader(f))


def seen(root: Path) -> dict[str, int]:
    """Folder of a run → images seen at its newest row."""
    runs = sorted((root / "trials").glob("*/metrics.jsonl"))
    return {run.parent.name: rows[-1]["images_seen"] for run in runs if (rows := metrics(run.parent))}


def test_four_trials_with_asha_interrupted_and_restored_are_neither_lost_nor_doubled(cohort, tmp_path):
    root = tmp_path / "sweep"
    args = arguments(cohort, "optimization.total_images_budget=64")
    argv = ["samples=4", "seed=3", "scheduler=asha", "asha={grace_images: 8, reduction_factor: 2.0}", f"output={root}"]
    first = Sweep(tmp_path / "first.log", *command(args, *argv, "max_concurrent=2"))
    wait_for(lambda: first.process.poll() is not None or len(seen(root)) >= 2, 240, 0.1)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 0, first.said()
    assert f"restore={root}" in first.said()
    before = board(root)
    assert "unfinished" in {row["status"] for row in before}, "nothing was interrupted"
    saved = {name: checkpoint.latest(str(root / "trials" / name / "checkpoints"), TAG) for name in seen(root)}
    began = {name: found.meta["images_seen"] for name, found in saved.items() if found is not None}
    assert began and all(images == seen(root)[name] for name, images in began.items()), "runs end with a checkpoint"

    again = Sweep(tmp_path / "again.log", f"restore={root}")
    assert again.end() == 0, again.said()
    after = board(root)
    assert len(after) == 4 and {row["trial"] for row in before} <= {row["trial"] for row in after}
    assert sorted(p.name for p in (root / "trials").iterdir()) == sorted(row["trial"] for row in after)
    assert {row["status"] for row in after} <= {"finished", "stopped"} and len({row[LR] for row in after}) == 4
    for row in after:
        images = [r["images_seen"] for r in metrics(root / "trials" / row["trial"])]
        assert images == list(range(4, images[-1] + 1, 4)), "every step once"
        assert images[-1] == 64 if row["status"] == "finished" else images[-1] >= 8
    assert any(row["status"] == "finished" for row in after)
    for name, images in began.items():
        run = root / "trials" / name
        assert metrics(run)[-1]["images_seen"] >= images
    assert json.loads((root / "trials.json").read_text())[0]["error"] is None


def test_in_a_population_the_worst_goes_on_from_the_best_ones_weights_with_its_value_changed(cohort, tmp_path):
    root = tmp_path / "sweep"
    args = arguments(cohort, "optimization.total_images_budget=96")  # long enough for one to wait for the other
    space = {LR: {"loguniform": [1e-6, 1e-2]}}
    argv = ["samples=2", "scheduler=pbt", "pbt={perturbation_images: 16, quantile: 0.5}", f"output={root}"]
    sweep = Sweep(tmp_path / "log", *command(args, *argv, "max_concurrent=2", space=space))
    assert sweep.end() == 0, sweep.said()
    rows = board(root)
    assert [row["status"] for row in rows] == ["finished"] * 2, sweep.said()
    runs = {path.parent.name: json.loads(path.read_text()) for path in (root / "trials").glob("*/trial.json")}
    assert Counter(record["trial"] for record in runs.values()).keys() == {row["trial"] for row in rows}
    branches = {name: record for name, record in runs.items() if "-from-" in name}
    assert branches, "nobody took over another's weights"
    assert max(seen(root).values()) == 96
    for name, record in branches.items():
        donor = name.partition("-from-")[2].rpartition("-img")[0]
        images = int(name.rpartition("-img")[2])
        assert donor != record["trial"] and images in range(16, 96, 16)
        rows_of_branch = metrics(root / "trials" / name)
        assert [r["images_seen"] for r in rows_of_branch][0] == images + 4, "it goes on where the donor was"
        own = [read_committed(c.path).meta for c in list_committed(str(root / "trials" / name / "checkpoints"))]
        assert own and {m["identity"]["values"][LR] for m in own} == {record["values"][LR]}
        assert 1e-6 <= record["values"][LR] <= 1e-2
        donors = [r["values"][LR] for other, r in runs.items() if r["trial"] == donor and other != name]
        assert record["values"][LR] not in donors


def test_an_evaluators_metric_is_the_objective_and_each_trial_may_have_anchors_of_its_own(cohort, tmp_path):
    root, metric = tmp_path / "sweep", "pathorob/hospitals/ri"
    tuning = write_tuning(tmp_path / "tuning.yaml", write_patches(tmp_path / "patches"))
    args = ["--config", tuning, *arguments(cohort, "optimization.total_images_budget=16")]
    space = {"data.anchor_stride_fraction": {"grid": [0.5, 1.0]}}
    argv = [f"objective={{metric: {metric}, mode: max}}", "search=grid", f"output={root}", "max_concurrent=2"]
    sweep = Sweep(tmp_path / "log", *command(args, *argv, space=space))
    assert sweep.end() == 0, sweep.said()
    rows = board(root)
    assert [row["status"] for row in rows] == ["finished"] * 2, sweep.said()
    for row in rows:
        run = root / "trials" / row["trial"]
        judged = [json.loads(line) for line in (run / "robustness.jsonl").read_text().splitlines()]
        assert {0, 16} <= {r["images_seen"] for r in judged} <= {0, 8, 16}
        assert float(row[f"{metric} best"]) == max(r[metric] for r in judged if metric in r)
        assert (run / "indexes" / "anchor_catalog_manifest.json").exists(), "the stride is the trial's own"
    assert (root / "shared" / "slide_metadata.parquet").exists()
    assert not (root / "shared" / "anchor_catalog_manifest.json").exists()
