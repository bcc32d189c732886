"""Which tables an experiment has, and what it is called."""

import json

import pytest

from mil.comparison.experiments import list_tables, name_experiments, read_experiments
from mil.judging.predictions import read_predictions
from pathray.errors import MissingFile, UserError
from tests.builders.slide_predictions import predict_classes, write_table

OOF = "oof_predictions.parquet"


def training(folder, seeds=()):
    """The files of a training that `list_tables` looks for."""
    for part in (folder, *(folder / f"seed_{seed}" for seed in seeds[1:])):
        part.mkdir(parents=True)
        (part / OOF).write_bytes(b"")
    if seeds:
        (folder / "seeds.json").write_text(json.dumps({"seeds": list(seeds), "scores": {}}))
    return folder


def test_a_training_has_a_table_per_seed(tmp_path):
    one, many = training(tmp_path / "one"), training(tmp_path / "many", (3, 4, 5))
    assert list_tables(str(one)) == [f"{one}/{OOF}"]
    assert list_tables(str(many)) == [f"{many}/{OOF}", f"{many}/seed_4/{OOF}", f"{many}/seed_5/{OOF}"]


def test_an_unfinished_training_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile, match="no predictions.*empty"):
        list_tables(str(tmp_path / "empty"))
    waiting = training(tmp_path / "waiting", (0, 1))
    (waiting / "seeds.json").unlink()
    with pytest.raises(UserError, match="has not finished.*seeds.json"):
        list_tables(str(waiting))
    lost = training(tmp_path / "lost", (0, 1))
    (lost / "seed_1" / OOF).unlink()
    with pytest.raises(MissingFile, match="predictions of a seed are missing.*seed_1"):
        list_tables(str(lost))
    (lost / "seeds.json").write_text("{}")
    with pytest.raises(UserError, match="not a list of seeds"):
        list_tables(str(lost))


def test_one_experiment_and_a_table_twice_are_refused(tmp_path):
    path = write_table(tmp_path / "a.csv", predict_classes(1.0))
    with pytest.raises(UserError, match="needs two experiments"):
        read_experiments({"a": [path]})
    with pytest.raises(UserError, match="'a' has a table twice.*a.csv"):
        read_experiments({"a": [path, path], "b": [path]})
    found = read_experiments({"a": [path], "b": [path]}, read_predictions)
    assert [one.name for one in found] == ["a", "b"] and len(found[0].first) == 80


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([["out/abmil"], ["out/clam"]], ["abmil", "clam"]),
        ([["a/run"], ["b/run"]], ["a/run", "b/run"]),
        ([["abmil/preds.csv"], ["clam/preds.csv"]], ["abmil", "clam"]),
        ([["abmil/0.csv", "abmil/1.csv"], ["clam/0.csv", "clam/1.csv"]], ["abmil", "clam"]),
        ([["out/x_0", "out/x_1"], ["out/y_0", "out/y_1"]], ["x_0", "y_0"]),
        ([["same.csv"], ["same.csv"]], ["same (1)", "same (2)"]),
    ],
)
def test_experiments_are_named_by_what_tells_them_apart(paths, names):
    assert name_experiments(paths) == names
