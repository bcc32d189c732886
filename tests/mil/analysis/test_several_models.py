"""Trainings whose slides have several models, or with a run that tests none: their prediction is that of the table."""

import csv

import pyarrow.parquet as pq
import pytest

from mil.analysis.embeddings import FEATURES
from mil.analysis.heatmap import model_of, words_of
from mil.analysis.trained_run import SEVERAL, open_run
from mil.sections import CONFIGS_DIR, GROUPS
from ray_jobs import analyze_mil, train_mil
from ray_jobs.analyze_mil import AnalyzeMILConfig
from ray_jobs.shell.cli import run_job
from ray_jobs.train_mil import TrainMILConfig
from tests.builders.mil import write_cohort

KEYS = (
    "model=abmil", "data.threads=1", "training.max_epochs=2", "training.global_batch=4", "training.lr=0.01",
    "training.batch_size_per_gpu=4", "eval.resamples=20", "logging.mlflow=false", "scaling.accelerator=cpu",
    "scaling.workers=0", "model.arguments.embed_dim=16", "model.arguments.attention_dim=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=12, slides=1, tiles=8)


def analyse_all(root, name, *words):
    """Train, analyse every tested slide; the rows of slides.csv and of the table of predictions by slide, and of the
    embeddings."""
    run, out = root / name, root / f"{name}_out"
    words = (f"data.csv={root}/slides.csv", f"data.store={root}/store", f"output={run}", *words, *KEYS)
    assert run_job(train_mil.main, TrainMILConfig, words, CONFIGS_DIR, GROUPS) == 0
    wanted = (f"run={run}", f"output={out}", "all=true", "worst=0", "best=0", "max_px=100", "geojson=false")
    assert run_job(analyze_mil.main, AnalyzeMILConfig, wanted, CONFIGS_DIR) == 0
    rows = {row["slide_id"]: row for row in csv.DictReader((out / "slides.csv").open())}
    table = {row["slide_id"]: row for row in pq.read_table(run / "oof_predictions.parquet").to_pylist()}
    return rows, table, pq.read_table(out / "embeddings.parquet").to_pylist()


def check_predictions(rows, table):
    assert rows.keys() == table.keys()
    for name, row in rows.items():
        assert row["status"] == "ok", row["error"]
        assert float(row["prob_tumor"]) == pytest.approx(table[name]["prob_tumor"], abs=1e-6)


def check_folds(embeddings):
    assert all(row["space"] in (FEATURES, row["fold"]) for row in embeddings)


def test_of_inner_splits_the_prediction_is_the_mean_and_the_map_says_whose_it_is(root):
    rows, table, embeddings = analyse_all(root, "nested", "splits=nested", "splits.folds=3", "splits.inner_folds=2")
    check_predictions(rows, table)
    check_folds(embeddings)
    run = open_run(f"{root}/nested")
    assert any(abs(s.said["prob_tumor"] - s.values["prob_tumor"]) > 1e-4 for s in run.slides.values())
    for name, slide in run.slides.items():
        assert f"mean of 2 models; the map is of one of them, {slide.split}" in rows[name]["notes"]
        assert f"{slide.said['prob_tumor']:.6f}" in rows[name]["notes"] and slide.fold == slide.split[: len("outer_0")]
        assert f"{max(slide.values.values()):.6f}" in words_of(slide) and "mean of 2 models" in model_of(slide)


def test_of_repeated_splits_the_prediction_is_the_mean_of_those_that_tested(root):
    rows, table, embeddings = analyse_all(root, "mccv", "splits=mccv", "splits.repeats=4")
    check_predictions(rows, table)
    check_folds(embeddings)
    slides = open_run(f"{root}/mccv").slides
    assert {name: len(s.others) + 1 for name, s in slides.items()} == {n: row["times"] for n, row in table.items()}
    assert all((slide.fold == SEVERAL) == bool(slide.others) for slide in slides.values())


def test_a_refit_tests_no_slide_and_is_no_split(root):
    rows, table, embeddings = analyse_all(root, "refit", "splits.folds=3", "refit=true")
    check_predictions(rows, table)
    check_folds(embeddings)
    run = open_run(f"{root}/refit")
    assert run.splits == ("fold_0", "fold_1", "fold_2") and (root / "refit" / "refit").is_dir()
    assert all(not row["notes"].startswith("the prediction is the mean") for row in rows.values())
