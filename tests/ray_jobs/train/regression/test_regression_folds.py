"""The job of a cross-validation of a regression: what is refused, folds next to each other, interrupted, failed.

Not here: its threads (test_folds.py), a single run (test_regression_jobs.py).
"""

import json
from pathlib import Path

import pytest

from pathray.run.stop import request_stop
from ray_jobs import train_folds
from ray_jobs.shell.cli import run_job
from regression.config import CONFIGS_DIR
from regression.data import ImageReader
from tests.builders.expression import save_random_encoder, write_images
from tests.builders.jobs import wait_for
from tests.ray_jobs.train.regression.test_regression_jobs import KEYS, runs, split, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A table of 24 images of six groups, and its hold-out split."""
    folder = tmp_path_factory.mktemp("expression")
    table = write_images(folder)
    assert split(table, folder / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    return table, folder / "split.csv"


def mlflow_runs(output: Path) -> tuple:
    """The cross-validation's run, and its folds'."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    known = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = (run for run in known if "mlflow.parentRunId" not in run.data.tags)
    return parent, [run for run in known if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def folds(output: Path, table: str, splits: Path, *argv: str) -> int:
    words = [*KEYS, f"data.table={table}", f"splits={splits}", f"output={output}", *argv]
    return run_job(train_folds.main, train_folds.TrainFoldsConfig, words, CONFIGS_DIR)


def folds_here(folder: Path, table: str) -> int:
    """Three folds of a small network in this process, one after the other, to `folder`/out; no figures."""
    if not (folder / "folds").exists():
        assert split(table, folder / "folds", "kind=group_kfold", "k=3") == 0
        save_random_encoder(folder / "small")
    small = ("model.backbone=artifact", f"model.artifact={folder / 'small'}", "eval.baselines=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regression.reports.report.figures", lambda *args: ())
        return folds(folder / "out", table, folder / "folds", *small, "scaling.workers=0")


def test_folds_that_cannot_all_be_trained_are_refused_before_the_first_begins(data, tmp_path, capsys):
    table, parts = data
    assert folds(tmp_path / "out", table, tmp_path) == 2
    assert "fold_0.csv" in capsys.readouterr().err
    assert split(table, tmp_path / "folds", "kind=group_kfold", "k=3") == 0
    assert folds(tmp_path / "out", table, tmp_path / "folds", "--dry-run") == 0
    assert folds(tmp_path / "out", table, tmp_path / "folds", f"data.split={parts}", "--dry-run") == 2
    assert "data.split" in capsys.readouterr().err
    (tmp_path / "folds" / "fold_2.csv").write_text(parts.read_text().replace(",test", ",train"))
    assert folds(tmp_path / "out", table, tmp_path / "folds") == 2
    assert "fold_2.csv" in capsys.readouterr().err and runs(tmp_path / "out") == []


def test_a_fold_that_tests_a_single_row_is_refused_before_the_first_begins(data, tmp_path, capsys):
    rows = Path(data[0]).read_text().splitlines()
    table = Path(data[0]).with_name("one.csv")
    table.write_text("\n".join([rows[0], rows[1].replace(",p0,", ",alone,"), *rows[2:]]) + "\n")
    assert split(str(table), tmp_path / "folds", "kind=leave_one_group_out") == 0
    assert folds(tmp_path / "out", str(table), tmp_path / "folds", "--dry-run") == 2
    assert "two or more rows of test" in capsys.readouterr().err


def test_folds_left_of_another_number_of_folds_are_refused(data, tmp_path, capsys):
    for k in (4, 3):
        assert split(data[0], tmp_path / "folds", "kind=group_kfold", f"k={k}") == 0
    assert folds(tmp_path / "out", data[0], tmp_path / "folds", "--dry-run") == 2
    said = capsys.readouterr().err
    assert "a group tests twice" in said and "fold_3.csv" in said


def test_a_probe_that_is_no_encoder_is_refused_before_the_first_fold_begins(data, tmp_path, capsys):
    probe = f"eval.probes.other={tmp_path / 'none'}"
    assert split(data[0], tmp_path / "folds", "kind=group_kfold", "k=3") == 0
    assert folds(tmp_path / "out", data[0], tmp_path / "folds", probe, "--dry-run") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_interrupted_folds_go_on_by_the_same_command(data, tmp_path, monkeypatch):
    output, read = tmp_path / "out", ImageReader.read
    monkeypatch.setattr("ray_jobs.train.folds.POLL_S", 0.02)

    def read_and_stop(reader, unit, position, attempt):
        if position == 8:
            request_stop(str(output))
            wait_for((output / "fold_0" / "STOP").exists)
        return read(reader, unit, position, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageReader, "read", read_and_stop)
        assert folds_here(tmp_path, data[0]) == 0
    assert 0 < weights(output / "fold_0")["images"] < 48 and not (output / "folds.json").exists()
    assert not (output / "fold_2" / "checkpoints").exists(), "nothing new begins after a stop"
    assert folds_here(tmp_path, data[0]) == 0
    assert {weights(output / f"fold_{i}")["images"] for i in range(3)} == {48}
    assert json.loads((output / "folds.json").read_text())["folds"] == ["fold_0", "fold_1", "fold_2"]


def test_a_fold_that_fails_does_not_end_the_others(data, tmp_path):
    output = tmp_path / "out"
    (output / "fold_1" / "encoder").mkdir(parents=True)
    (output / "fold_1" / "encoder").chmod(0o500)
    (output / "fold_1" / "checkpoints").write_text("in the way")
    assert folds_here(tmp_path, data[0]) != 0
    assert sorted(p.parent.name for p in output.glob("*/metrics.json")) == ["fold_0", "fold_2"]
    assert not (output / "folds.json").exists()


# --- through Ray ------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.heavy
def test_a_frozen_backbone_sees_every_image_once_for_all_folds_and_is_trained_on_what_it_saw(
    ray_cluster, data, tmp_path
):
    """Two folds next to each other through Ray; the third follows without it, and the second is judged again."""
    table, output = data[0], tmp_path / "out"
    assert split(table, tmp_path / "folds", "kind=group_kfold", "k=3") == 0
    (tmp_path / "folds" / "fold_2.csv").rename(tmp_path / "fold_2.csv")
    probe = tmp_path / "probe"
    save_random_encoder(probe)
    frozen = (
        "model.frozen=true",
        "augment.geometry=false",
        "augment.stain=0",
        f"eval.probes.other={probe}",
        "logging.mlflow=true",
        "train.images=16",
    )
    words = (output, table, tmp_path / "folds", *frozen)
    assert folds(*words, "parallel=2") == 0
    (kept, other) = sorted((output / "features").iterdir())
    made = {path: path.stat().st_mtime_ns for path in [*kept.iterdir(), *other.iterdir()]}
    known = json.loads((output / "folds.json").read_text())
    assert (known["folds"], known["rows"]) == (["fold_0", "fold_1"], [8, 8])
    (tmp_path / "fold_2.csv").rename(tmp_path / "folds" / "fold_2.csv")
    (output / "fold_1" / "metrics.json").unlink()
    assert folds(*words, "scaling.workers=0") == 0, "a fold that lacks its results is judged again, another is left"
    assert {path: path.stat().st_mtime_ns for path in made} == made
    found = json.loads((output / "folds.json").read_text())
    assert found["folds"] == ["fold_0", "fold_1", "fold_2"] and found["rows"] == [8, 8, 8]
    assert set(found["spearman"]) == {"model", "colour", "initial", "other"}
    assert all(found["spearman"][name]["folds"][:2] == known["spearman"][name]["folds"] for name in found["spearman"])
    parent, children = mlflow_runs(output)
    assert len(children) == 3 and parent.data.metrics["spearman/model"] == found["spearman"]["model"]["mean"]
    own = json.loads((output / "fold_1" / "metrics.json").read_text())
    assert found["spearman"]["colour"]["folds"][1] == own["baselines"]["colour"]["test"]["spearman"]
    assert found["spearman"]["model"]["folds"][1] == pytest.approx(own["test"]["spearman"], abs=1e-6)
    assert found["spearman"]["colour"]["mean"] > 0.5, "colour is what is expressed here"
