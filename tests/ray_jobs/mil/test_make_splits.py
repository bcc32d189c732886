"""The command that makes splits of slides: its files train, copies of a bag stop it, and a regression keeps its own."""

import json

import numpy as np
import pytest

from mil.sections import CONFIGS_DIR, GROUPS
from ray_jobs import train_mil
from ray_jobs.make_splits import is_of_slides
from ray_jobs.mil.splitting import MakeMILSplitsConfig, make_mil_splits
from ray_jobs.shell.cli import run_job
from ray_jobs.train_mil import TrainMILConfig
from tests.builders.bags import write_bag
from tests.builders.mil import make_store, write_cohort


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=18)


def run(root, output, *argv) -> int:
    words = (f"data.csv={root}/slides.csv", f"data.store={root}/store", f"output={output}", *argv)
    return run_job(make_mil_splits, MakeMILSplitsConfig, words, CONFIGS_DIR, GROUPS)


@pytest.mark.parametrize(
    ("words", "count"),
    [(("splits=kfold5",), 5), (("splits=holdout",), 1), (("splits=nested",), 20), (("splits=mccv",), 10)],
)
def test_files_of_every_shipped_scheme_are_taken_by_a_training(root, tmp_path, caplog, words, count):
    caplog.set_level("INFO")
    assert run(root, tmp_path / "splits", *words) == 0
    summary = json.loads((tmp_path / "splits" / "summary.json").read_text())
    assert len(summary["splits"]) == count == len(list((tmp_path / "splits").glob("fold_*.parquet")))
    given = (f"data.csv={root}/slides.csv", f"data.store={root}/store", f"splits.folder={tmp_path}/splits")
    train = (*given, f"output={tmp_path}/out", "model.arguments.embed_dim=8", "--dry-run")
    assert run_job(train_mil.main, TrainMILConfig, train, CONFIGS_DIR, GROUPS) == 0
    assert f"36 labelled slides, 18 patients, {count} splits" in caplog.text


def test_a_filter_from_the_command_line_chooses_who_is_tested(root, tmp_path):
    words = ("splits=holdout", "splits.scheme=custom_holdout", 'splits.filter=patient_id in ["P00", "P05", "P07"]')
    assert run(root, tmp_path / "splits", *words) == 0
    parts = json.loads((tmp_path / "splits" / "summary.json").read_text())["splits"]["run"]["parts"]
    assert parts["test"] == {"slides": 6, "patients": 3, "classes": {"normal": 2, "tumor": 4}}


def test_a_copy_under_another_patient_stops_the_command_and_writes_only_the_report(tmp_path, capsys):
    root = write_cohort(tmp_path / "cohort", patients=18)
    from mil.store.reading import Store

    store = Store(str(root / "store"))
    noised = store.features(0) + 0.01 * np.random.default_rng(0).normal(size=store.features(0).shape)
    write_bag(root / "h5" / "p40_s0.h5", noised.astype(np.float32))
    with (root / "slides.csv").open("a") as file:
        file.write("p40_s0,P40,normal,0.5,0,160,1\n")
    make_store(root / "store", root / "h5")
    assert run(root, tmp_path / "splits", "splits=kfold5") == 2
    said = capsys.readouterr().err
    assert "p00_s0 (P00) and p40_s0 (P40), same tiles" in said and "splits.allow_duplicates=true" in said
    assert [path.name for path in (tmp_path / "splits").iterdir()] == ["leakage.csv"]
    assert run(root, tmp_path / "splits", "splits=kfold5", "splits.allow_duplicates=true") == 0
    assert (tmp_path / "splits" / "summary.json").exists()


def test_a_pretraining_gets_a_manifest_of_the_stores_slides_or_of_the_bags(root, tmp_path):
    for key, output in ((f"data.store={root}/store", "a"), (f"data.features={root}/h5", "b")):
        words = (key, "splits=pretrain", f"output={tmp_path}/{output}")
        assert run_job(make_mil_splits, MakeMILSplitsConfig, words, CONFIGS_DIR, GROUPS) == 0
    one, other = (json.loads((tmp_path / name / "split_manifest.json").read_text()) for name in "ab")
    assert len(one["train_ids"]) == 32 and len(one["val_ids"]) == 4 and one["train_ids"] == other["train_ids"]
    assert run(root, tmp_path / "c", "splits=pretrain") == 0
    whole = json.loads((tmp_path / "c" / "split_manifest.json").read_text())
    assert {one[:3] for one in whole["val_ids"]} & {one[:3] for one in whole["train_ids"]} == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("splits=kfold5", "splits.folds=19"), "more folds|fewer patients than there are folds"),
        (("splits.filter=age > 3", "splits.scheme=custom_holdout"), "a column that the table lacks"),
        (("splits.folder=x",), "make_splits reads no splits"),
        (("data.store=",), "data.store is required"),
        (("data.csv=",), "data.csv is required"),
        (("splits.scheme=kfold",), "splits.scheme"),
        (("kind=holdout",), "unknown key"),
    ],
)
def test_what_cannot_be_split_is_told_and_nothing_is_written(root, tmp_path, capsys, words, said):
    import re

    assert run(root, tmp_path / "splits", *words) == 2
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / "splits").exists()


def test_a_dry_run_counts_and_writes_nothing(root, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run(root, tmp_path / "splits", "splits=nested", "--dry-run") == 0
    assert "36 labelled slides, 18 patients, 20 splits" in caplog.text and not (tmp_path / "splits").exists()
    assert run(root, tmp_path / "splits", "splits=pretrain", "--dry-run") == 0
    assert "36 slides" in caplog.text and not (tmp_path / "splits").exists()


@pytest.mark.parametrize(
    ("words", "slides"),
    [
        (["table=t.csv", "output=o", "kind=holdout"], False),
        (["output=o", "seed=1"], False),
        (["--help"], False),
        (["surely_no_such_key=1"], False),
        (["--config", "regression.yaml", "output=o"], False),
        (["--config=mil.yaml"], True),
        (["--config", "gone.yaml"], False),
        (["data.csv=t.csv", "output=o"], True),
        (["splits=nested", "--help"], True),
        (["data=gej", "encoder=uni2h", "table=t.csv"], False),
    ],
)
def test_a_command_line_is_of_slides_by_its_keys(words, slides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "regression.yaml").write_text("table: t.csv\n")
    (tmp_path / "mil.yaml").write_text("data: {csv: t.csv}\n")
    assert is_of_slides(words) == slides
