"""The job that probes, fine-tunes and sweeps OCT encoders: what it writes, what it refuses, through Ray and without."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from oct.downstream import features
from ray_jobs import finetune_oct
from ray_jobs.finetune_oct import FinetuneOctConfig
from ray_jobs.shell.cli import run_job
from tests.builders.oct.labelled import (
    LABELS,
    NUMBERS,
    OF_VOLUMES,
    write_labelled,
    write_oct_encoder,
    write_oct_run,
    write_table,
)

FAST = ("scaling.accelerator=cpu", "data.threads=1", "data.folds=3", "probe.resamples=100", "probe.min_steps=1",
        "probe.epochs=1", "probe.lrs=[1e-3]", "logging.mlflow=false")  # fmt: skip
TUNED = ("kind=finetune", "optimization.epochs=2", "optimization.global_batch=4", "optimization.lr=1e-3")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    write_oct_encoder(folder / "encoder")
    return folder


def run(labelled, output, *argv, labels=LABELS, workers=0) -> int:
    words = (f"data.index={labelled}/volumes.parquet", f"data.labels={labelled}/{labels}", f"output={output}",
             f"model.encoder={labelled}/encoder", f"scaling.workers={workers}")  # fmt: skip
    return run_job(finetune_oct.main, FinetuneOctConfig, [*words, *FAST, *argv], finetune_oct.CONFIGS_DIR)


def rows_of(output) -> list[dict[str, str]]:
    with open(Path(output) / "predictions.csv") as file:
        return list(csv.DictReader(file))


def metrics_of(output) -> dict:
    return json.loads((Path(output) / "metrics.json").read_text())


def test_a_probe_leaves_predictions_of_every_volume_scores_and_a_summary(labelled, tmp_path):
    assert run(labelled, tmp_path) == 0
    rows, scores = rows_of(tmp_path), metrics_of(tmp_path)["scores"]
    models = ("linear, pretrained", "attentive, pretrained", "linear, random weights", "attentive, random weights")
    assert [sum(row["model"] == model for row in rows) for model in models] == [24] * 4 and len(rows) == 96
    assert set(scores) == {*models, *(f"{kind}, pretrained − random weights" for kind in ("linear", "attentive"))}
    linear = [row for row in rows if row["model"] == "linear, pretrained"]
    by_person = {}
    for row in linear:
        assert row["label"] == ("thin", "thick")[int(row["person_id"]) % 2]
        assert float(row["p_thick"]) + float(row["p_thin"]) == pytest.approx(1, abs=2e-6)
        by_person.setdefault(row["person_id"], set()).add((row["fold"], row["p_thick"]))
    assert len(by_person) == 12 and all(len(own) == 1 for own in by_person.values()), "both eyes: one prediction"
    right = np.mean([row["label"] == row["predicted"] for row in linear])
    found = scores["linear, pretrained"]["accuracy"]
    assert found["estimate"] == pytest.approx(right) and found["persons"] == 12 and right > 0.9
    summary = (tmp_path / "summary.md").read_text()
    assert "12 labelled persons of 12 persons, 24 volumes: thick 6, thin 6" in summary and "scores.png" in summary


def test_a_second_probe_encodes_nothing_again(labelled, tmp_path, monkeypatch):
    assert run(labelled, tmp_path, "probe.attentive=false", "probe.baseline=false") == 0
    before = rows_of(tmp_path)
    monkeypatch.setattr(features.Compute, "arrays", lambda *_: pytest.fail("it was encoded again"))
    assert run(labelled, tmp_path, "probe.attentive=false", "probe.baseline=false") == 0
    assert rows_of(tmp_path) == before
    assert run(labelled, tmp_path, "probe.attentive=false", "probe.baseline=false", labels=OF_VOLUMES) == 0
    assert metrics_of(tmp_path)["units"] == 24


def test_numbers_are_probed_by_ridge(labelled, tmp_path):
    assert run(labelled, tmp_path, "data.task=regression", "probe.attentive=false", labels=NUMBERS) == 0
    scores = metrics_of(tmp_path)["scores"]["linear, pretrained"]
    rows = [row for row in rows_of(tmp_path) if row["model"] == "linear, pretrained"][::2]
    truth, predicted = (np.array([float(row[key]) for row in rows]) for key in ("label", "predicted"))
    assert scores["mae"]["estimate"] == pytest.approx(np.abs(truth - predicted).mean(), abs=1e-5)
    assert scores["pearson"]["estimate"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1], abs=1e-4)
    assert scores["r2"]["estimate"] > 0.3


def test_a_split_file_tests_its_test_persons_alone(labelled, tmp_path):
    parts = [(f"p{p}.dcm", f"{p:02d}", ("train", "train", "val", "val", "test", "test")[p % 6]) for p in range(12)]
    split = write_table(tmp_path / "split.csv", [("path", "group_id", "split"), *parts])
    assert run(labelled, tmp_path, f"data.split_file={split}", "probe.attentive=false", "probe.baseline=false") == 0
    assert {row["person_id"] for row in rows_of(tmp_path)} == {"04", "05", "10", "11"}


def test_volumes_that_cannot_be_read_are_named_and_too_many_end_the_job(tmp_path, capsys):
    write_labelled(tmp_path, persons=8, broken=(3,))
    write_oct_encoder(tmp_path / "encoder")
    only = ("probe.attentive=false", "probe.baseline=false")
    assert run(tmp_path, tmp_path / "out", *only) == 2
    assert "too many volumes cannot be read" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "out", *only, "data.max_corrupt_fraction=0.2") == 0
    assert {row["person_id"] for row in rows_of(tmp_path / "out")} == {f"{p:02d}" for p in range(8)} - {"03"}
    assert "Failed (2)" in (tmp_path / "out" / "summary.md").read_text()


def test_a_sweep_ranks_every_snapshot_next_to_random_weights(labelled, tmp_path, caplog):
    caplog.set_level("INFO")
    run_dir = write_oct_run(tmp_path / "run", (32, 64))
    assert run(labelled, tmp_path / "out", "kind=sweep", f"model.run={run_dir}") == 0
    with open(tmp_path / "out" / "leaderboard.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["snapshot"] for row in rows) == ["32 volumes", "final"]
    best = [float(row["balanced_accuracy"]) for row in rows]
    assert best == sorted(best, reverse=True) and rows[0]["balanced_accuracy_above_random"] != ""
    assert (tmp_path / "out" / "probe_over_volumes.png").read_bytes().startswith(b"\x89PNG")
    assert "1. " + rows[0]["snapshot"] in caplog.text
    assert not list((tmp_path / "out" / "features").rglob("tokens*"))


def test_fine_tuning_judges_every_person_by_a_model_that_did_not_see_them(labelled, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run(labelled, tmp_path, *TUNED) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 24 and {row["fold"] for row in rows} == {"0", "1", "2"}
    for fold in range(3):
        from pathray.data.plan import Plan

        plan = Plan.open(str(tmp_path / f"fold_{fold}" / "plan"))
        seen = {plan.sources["person"][i].as_py() for i in plan.column("source").tolist()}
        tested = {row["person_id"] for row in rows if row["fold"] == str(fold)}
        assert tested and not seen & tested
        assert (tmp_path / f"fold_{fold}" / "encoder" / "oct_model.json").exists()
    assert set(metrics_of(tmp_path)["scores"]["fine-tuned"]) == {"accuracy", "balanced_accuracy", "auc"}
    caplog.clear()
    assert run(labelled, tmp_path, *TUNED) == 0 and rows_of(tmp_path) == rows
    assert caplog.text.count("is finished") == 3 and "volumes train" not in caplog.text
    assert run(labelled, tmp_path, *TUNED, "data.seed=1") == 2, "another run's folder"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.encoder=null",), "model.encoder is required"),
        (("kind=sweep",), "model.run is required"),
        (("data.label=grade",), "no such column"),
        (("data.folds=9",), "data.folds=6"),
        (("kind=probing",), "unknown choice"),
        (("probe.pool=[1,1]",), "one number per axis"),
        (("data.fold=5",), "no such fold"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(labelled, tmp_path, words, said, capsys):
    assert run(labelled, tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.heavy
@pytest.mark.ray
def test_through_ray_the_same_comes_out(labelled, tmp_path, ray_cluster):
    only = ("probe.attentive=false", "probe.baseline=false")
    for workers, name in ((0, "here"), (1, "ray")):
        assert run(labelled, tmp_path / name, *only, workers=workers) == 0
        assert run(labelled, tmp_path / f"{name}_tuned", *TUNED, "data.fold=0", workers=workers) == 0
    assert rows_of(tmp_path / "here") == rows_of(tmp_path / "ray")
    assert rows_of(tmp_path / "here_tuned") == rows_of(tmp_path / "ray_tuned")


@pytest.mark.parametrize("name", ["probe", "finetune", "checkpoint_sweep"])
def test_shipped_configs_run(name, labelled, tmp_path):
    more = (f"model.run={write_oct_run(tmp_path / 'run', (8,))}", *TUNED[1:3], "data.fold=0")
    assert run(labelled, tmp_path / "out", f"--config={name}", *more, "--dry-run") == 0
    text = (finetune_oct.CONFIGS_DIR / f"{name}.yaml").read_text()
    assert text.startswith("# ") and f"python -m ray_jobs.finetune_oct --config {name}" in text
