"""The job that trains by folds: what it leaves, what it resumes, what it refuses, and folds at the same time on Ray."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mil.artifact import load
from mil.sections import CONFIGS_DIR, GROUPS
from pathray.run.stop import request_stop
from ray_jobs import evaluate_mil, train_mil
from ray_jobs.evaluate_mil import EvaluateMILConfig
from ray_jobs.shell.cli import run_job
from ray_jobs.train_mil import TrainMILConfig
from tests.builders.mil import write_cohort
from tests.builders.runs.weights import newest_weights

KEYS = (
    "data.csv=slides.csv", "data.store=store", "data.threads=1", "model=abmil", "model.arguments.embed_dim=16",
    "model.arguments.attention_dim=8", "splits.folds=3", "training.max_epochs=3", "training.lr=1e-2",
    "training.global_batch=2", "training.batch_size_per_gpu=2", "eval.resamples=100", "logging.mlflow=false",
    "scaling.accelerator=cpu",
)  # fmt: skip
WITHOUT_RAY = "scaling.workers=0"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=12)


@pytest.fixture(autouse=True)
def here(cohort, monkeypatch):
    monkeypatch.chdir(cohort)


def run(*argv) -> int:
    return run_job(train_mil.main, TrainMILConfig, (*KEYS, *argv), CONFIGS_DIR, GROUPS)


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """The output of an undisturbed training without Ray."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cohort)
        assert run(f"output={folder}", WITHOUT_RAY) == 0
    return folder


def weights(folder: Path):
    return {f"fold_{i}": newest_weights(folder / f"fold_{i}", "mil") for i in range(3)}


def test_every_patient_is_tested_once_and_judged(trained):
    oof = pq.read_table(trained / "oof_predictions.parquet")
    assert oof.num_rows == 24 and oof["slide_id"].to_pylist() == sorted(set(oof["slide_id"].to_pylist()))
    assert {"patient_id", "label", "fold", "prob_normal", "prob_tumor"} <= set(oof.column_names)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["patients"] == 12 and metrics["slides_as_units"]["overall"]["auroc"]["value"] is not None
    assert metrics["thresholds_chosen_on"] == "validation slides of all folds together: mildly optimistic"
    folds = json.loads((trained / "cv_results.json").read_text())
    assert set(folds["folds"]) == {"fold_0", "fold_1", "fold_2"} and set(folds["models"]) == {
        "fold_0",
        "fold_1",
        "fold_2",
        "best_fold",
        "ensemble",
    }
    for name in ("report.html", "roc.png", "calibration.png", "confusion.png", "fold_2/embeddings.npy"):
        assert (trained / name).stat().st_size > 500


def test_a_second_start_trains_nothing(trained, caplog):
    caplog.set_level("INFO")
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("preds_test.parquet")}
    assert run(f"output={trained}", WITHOUT_RAY) == 0
    assert "3 of 3 runs are finished" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("preds_test.parquet")}


def test_an_interrupted_training_goes_on_where_it_was(trained, tmp_path, monkeypatch, caplog):
    """A stop is asked for when the second fold begins; the same command finishes it with the same bits."""
    caplog.set_level("INFO")
    from ray_jobs.mil import runs

    train_fold, out = runs.train_fold, tmp_path / "out"

    def stop_in_second(config):
        if config.output.endswith("fold_1"):
            request_stop(str(out))
        train_fold(config)

    monkeypatch.setattr(runs, "train_fold", stop_in_second)
    assert run(f"output={out}", WITHOUT_RAY) == 0
    assert "the same command resumes" in caplog.text and not (out / "metrics.json").exists()
    monkeypatch.setattr(runs, "train_fold", train_fold)
    assert run(f"output={out}", WITHOUT_RAY) == 0
    assert weights(out) == weights(trained)
    assert (out / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()


def test_older_predictions_are_not_judged_where_a_stop_came_before_the_new_ones(tmp_path, monkeypatch, caplog):
    """Settings that are meant to change: a stop is asked for before the second fold has predictions by them."""
    caplog.set_level("INFO")
    from ray_jobs.mil import runs

    train_fold, out = runs.train_fold, tmp_path / "out"
    assert run(f"output={out}", WITHOUT_RAY, "training.max_epochs=1") == 0
    judged = (out / "cv_results.json").read_bytes()

    def stop_in_second(config):
        if config.output.endswith("fold_1"):
            request_stop(str(out))
        train_fold(config)

    monkeypatch.setattr(runs, "train_fold", stop_in_second)
    words = ("training.max_epochs=1", "training.weight_decay=0.5", "checkpoint.resume_changes=[training.weight_decay]")
    assert run(f"output={out}", WITHOUT_RAY, *words) == 0
    assert "the same command resumes" in caplog.text and (out / "cv_results.json").read_bytes() == judged


@pytest.mark.heavy
def test_two_folds_at_a_time_on_ray_end_with_the_bits_of_one_after_the_other(trained, tmp_path, ray_cluster):
    out = tmp_path / "out"
    assert run(f"output={out}", "parallel=2", "scaling.workers=1", "scaling.cpus_per_worker=0.25") == 0
    assert weights(out) == weights(trained)
    assert pq.read_table(out / "oof_predictions.parquet").equals(pq.read_table(trained / "oof_predictions.parquet"))


def test_evaluating_the_predictions_again_gives_the_same_scores(trained, tmp_path):
    words = (f"predictions={trained}/oof_predictions.parquet", f"output={tmp_path}/ev", "resamples=100", "seed=42")
    assert run_job(evaluate_mil.main, EvaluateMILConfig, words, evaluate_mil.CONFIGS_DIR) == 0
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, tmp_path / "ev"))
    assert one["slides_as_units"] == two["slides_as_units"]


def test_a_dry_run_counts_slides_and_writes_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, "--dry-run") == 0
    assert "24 labelled slides" in caplog.text and "12 patients" in caplog.text and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.csv=",), "data.csv is required"),
        (("data.store=nowhere",), "no feature store"),
        (("data.label=stage",), "no such column"),
        (("model.name=abmill",), "abmil"),
        (("model.arguments.depth=3",), "depth"),
        (("eval.primary=auroc",), "loss | accuracy | balanced_accuracy | auc"),
        (("splits.folds=9",), "fewer patients than there are folds"),
        (("parallel=2",), "several folds at a time need Ray"),
        (("training.freeze_aggregator=true",), "a frozen aggregator needs weights"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_starts(tmp_path, capsys, words, said):
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_other_losses_of_two_classes_end_in_probabilities_that_are_judged(tmp_path, kind):
    words = (f"training.loss.kind={kind}", "training.max_epochs=1")
    assert run(f"output={tmp_path}", WITHOUT_RAY, *words) == 0
    oof = pq.read_table(tmp_path / "oof_predictions.parquet")
    sums = oof["prob_normal"].to_numpy() + oof["prob_tumor"].to_numpy()
    np.testing.assert_allclose(sums, 1, atol=1e-6)


def test_a_fold_that_has_diverged_is_told_and_leaves_no_predictions(tmp_path, capsys):
    words = ("training.lr=1e30", "training.clip_grad=null", "training.global_batch=4")
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, *words) == 2
    assert "the model has diverged" in capsys.readouterr().err
    assert not [*tmp_path.glob("out/*/preds_*.parquet")] and not (tmp_path / "out" / "metrics.json").exists()


def test_a_model_that_needs_positions_is_refused_for_bags_without(tmp_path, monkeypatch, capsys):
    import numpy as np

    from tests.builders.bags import write_bag
    from tests.builders.mil import make_store

    names = [f"s{i}" for i in range(10)]
    for name in names:
        write_bag(tmp_path / "h5" / f"{name}.h5", np.ones((4, 8), np.float32))
    make_store(tmp_path / "store", tmp_path / "h5")
    rows = "".join(f"{name},{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,label\n" + rows)
    monkeypatch.chdir(tmp_path)
    words = ("data.csv=slides.csv", "data.store=store", "model=vit_alibi", "output=out", WITHOUT_RAY)
    assert run_job(train_mil.main, TrainMILConfig, words, CONFIGS_DIR, GROUPS) == 2
    assert "10 slides without, such as s0" in capsys.readouterr().err


SURVIVAL = (
    "data.task=survival", "data.time=months", "data.event=died", "training.global_batch=8",
    "training.batch_size_per_gpu=8", "training.max_epochs=20",
)  # fmt: skip


def test_survival_is_trained_and_judged_by_pairs_within_a_fold(tmp_path):
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, *SURVIVAL) == 0
    oof = pq.read_table(tmp_path / "out" / "oof_predictions.parquet")
    assert {"risk", "time", "event", "fold"} <= set(oof.column_names) and oof.num_rows == 24
    survival = json.loads((tmp_path / "out" / "metrics.json").read_text())["survival"]
    assert survival["patients"] == 12 and survival["events"] == 9 and survival["c_index"]["value"] > 0.7
    assert set(survival["groups"]) == {"lower risk", "higher risk"}
    assert (tmp_path / "out" / "survival.png").stat().st_size > 5000
    words = (f"predictions={tmp_path}/out/oof_predictions.parquet", f"output={tmp_path}/ev", "resamples=100", "seed=42")
    assert run_job(evaluate_mil.main, EvaluateMILConfig, words, evaluate_mil.CONFIGS_DIR) == 0
    assert json.loads((tmp_path / "ev" / "metrics.json").read_text())["survival"] == survival


def test_grades_are_trained_and_judged_as_ordered(tmp_path):
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, "data.task=ordinal", "data.label=grade") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["grades"]) == {"mae_ranks", "quadratic_kappa"}
    assert metrics["slides_as_units"]["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SURVIVAL[:4], "needs the whole global batch at once"),
        ((*SURVIVAL[:3], "training.global_batch=1", "training.batch_size_per_gpu=1"), "at least 2"),
        ((*SURVIVAL, "training.loss.kind=focal"), "this is of classes alone, not of survival"),
        ((*SURVIVAL, "data.sampling=balanced"), "only classes can be balanced"),
        (("data.task=survival",), "data.time"),
    ],
)
def test_a_survival_training_that_could_not_learn_is_refused_at_the_start(tmp_path, capsys, words, said):
    assert run(f"output={tmp_path}/out", WITHOUT_RAY, *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def of_seeds(trained, cohort):
    """The same output after `seeds=2 refit=true`: what was there is not trained again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cohort)
        before = weights(trained)
        assert run(f"output={trained}", WITHOUT_RAY, "seeds=2", "refit=true") == 0
        assert weights(trained) == before
    return trained


def test_seeds_share_the_splits_and_their_spread_is_reported(of_seeds):
    spread = json.loads((of_seeds / "seeds.json").read_text())
    auroc = spread["scores"]["auroc"]
    each = [json.loads((of_seeds / f / "metrics.json").read_text()) for f in (".", "seed_1")]
    expected = [one["slides_as_units"]["overall"]["auroc"]["value"] for one in each]
    assert list(auroc["each"].values()) == pytest.approx(expected)
    assert auroc["value"] == pytest.approx(np.mean(expected))
    assert auroc["std"] == pytest.approx(np.std(expected, ddof=1)) and auroc["low"] <= auroc["value"] <= auroc["high"]
    tables = [pq.read_table(of_seeds / f / "oof_predictions.parquet") for f in (".", "seed_1")]
    assert tables[0]["slide_id"] == tables[1]["slide_id"] and tables[0]["fold"] == tables[1]["fold"]
    assert tables[0]["prob_tumor"] != tables[1]["prob_tumor"]
    assert "deviation over seeds" in (of_seeds / "report.html").read_text()


def test_a_start_with_fewer_seeds_leaves_no_spread_of_more(of_seeds, tmp_path):
    out = shutil.copytree(of_seeds, tmp_path / "out")
    assert run(f"output={out}", WITHOUT_RAY) == 0
    assert not (out / "seeds.json").exists() and "deviation over seeds" not in (out / "report.html").read_text()


def test_a_refit_sees_all_slides_for_the_median_of_the_best_passes(of_seeds):
    described = json.loads((of_seeds / "refit" / "encoder" / "mil.json").read_text())
    assert described["target"]["counts"] == [12, 12]
    folds = [json.loads((of_seeds / f"fold_{i}" / "encoder" / "mil.json").read_text()) for i in range(3)]
    passes = np.median([one["provenance"]["images_seen"] / sum(one["target"]["counts"]) for one in folds])
    assert described["provenance"]["images_seen"] == round(24 * passes)
    assert not (of_seeds / "refit" / "preds_val.parquet").exists()


def test_an_ensemble_says_the_mean_of_its_members_and_the_best_fold_what_it_said(of_seeds):
    members = [load(str(of_seeds / f"fold_{i}" / "encoder")).net for i in range(3)]
    ensemble, best = (load(str(of_seeds / "models" / name)) for name in ("ensemble", "best_fold"))
    bag = torch.randn(2, 9, 8)
    with torch.no_grad():
        each = [net.predict(bag, return_attention=True) for net in members]
        found = ensemble.net.predict(bag, return_attention=True)
    torch.testing.assert_close(found.values, torch.stack([one.values for one in each]).mean(0))
    torch.testing.assert_close(found.attention, torch.stack([one.attention for one in each]).mean(0))
    assert found.embedding.shape == (2, 48) and ensemble.net.value_names == ("prob_normal", "prob_tumor")
    chosen = best.description["provenance"]["split"]
    losses = {
        name: one["loss"] for name, one in json.loads((of_seeds / "cv_results.json").read_text())["validation"].items()
    }
    assert chosen == min(losses, key=losses.get)
    with torch.no_grad():
        assert torch.equal(best.net.predict(bag).values, each[int(chosen[-1])].values)


@pytest.mark.parametrize("scheme", ["nested", "mccv"])
def test_repeated_and_nested_splits_end_in_one_row_per_slide(tmp_path, scheme):
    keys = ("splits.inner_folds=2",) if scheme == "nested" else ("splits.repeats=4", "splits.fractions=[0.5,0.25,0.25]")
    assert (
        run(f"output={tmp_path}", WITHOUT_RAY, f"splits={scheme}", "splits.folds=3", "training.max_epochs=1", *keys)
        == 0
    )
    oof = pq.read_table(tmp_path / "oof_predictions.parquet")
    names = oof["slide_id"].to_pylist()
    assert names == sorted(set(names))
    results = json.loads((tmp_path / "cv_results.json").read_text())
    name = names[0]
    tested = [pq.read_table(tmp_path / split / "preds_test.parquet").to_pylist() for split in results["folds"]]
    values = [row["prob_tumor"] for table in tested for row in table if row["slide_id"] == name]
    assert oof["prob_tumor"][0].as_py() == pytest.approx(np.mean(values), abs=1e-12)
    if scheme == "nested":
        assert len(names) == 24 and len(values) == 2 and set(oof["fold"].to_pylist()) == {0, 1, 2}
    else:
        repeats = results["repeats"]
        x = np.array([one["accuracy"] for one in results["folds"].values()])
        found, ratio = repeats["scores"]["accuracy"], repeats["test_to_train"]
        assert found["mean"] == pytest.approx(x.mean()) and repeats["repeats"] == 4
        half = 3.182446305284263 * x.std(ddof=1) * (1 / 4 + ratio) ** 0.5
        assert found["high"] - found["mean"] == pytest.approx(half) and "times" in oof.column_names
