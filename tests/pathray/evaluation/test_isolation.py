"""Evaluators fail alone: what one metric or dataset cannot do never takes the results of the others."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pathray.device import Device
from pathray.errors import UserError
from pathray.evaluation import judge as job
from pathray.evaluation.datasets import Unfit, open_dataset
from pathray.evaluation.judge import Judge
from pathray.evaluation.metrics.probe import grouped_split, linear_probe
from pathray.evaluation.plugins import EVALUATORS, evaluate
from pathray.evaluation.settings import DatasetConfig, PluginConfig
from pathray.store.storage import StorageError
from tests.builders.evaluation import cohort

CPU = Device.of("cpu")
ALL = {"pathorob": ["ri", "apd", "clustering"], "probe": ["linear", "knn"]}


class Broken:
    """An evaluator with one metric that works and one that has a mistake."""

    metrics = ("fine", "wrong")
    values = metrics

    def evaluate(self, dataset, features, due):
        if "wrong" in due:
            raise ZeroDivisionError("a mistake of the metric")
        return {"fine": 0.25}, []


def table(path, rows):
    """A manifest of (slide, class, centre), six patches each, and features for its rows."""
    lines = [f"{s}_{i}.png,{y},{c},{s}" for s, y, c in rows for i in range(6)]
    path.write_text("\n".join(["image_path,label,medical_center,slide_id", *lines]) + "\n")
    return str(path), np.random.default_rng(3).normal(size=(len(lines), 8)).astype(np.float32)


SMALL = {
    "two slides": [("s1", "a", "A"), ("s2", "b", "B")],
    "three slides": [("s1", "a", "A"), ("s2", "a", "B"), ("s3", "b", "A")],
    "two slides a class": [("s1", "a", "A"), ("s2", "a", "B"), ("s3", "b", "A"), ("s4", "b", "B")],
    "one class": [("s1", "a", "A"), ("s2", "a", "B"), ("s3", "a", "A")],
    "one centre": [("s1", "a", "A"), ("s2", "b", "A"), ("s3", "a", "A"), ("s4", "b", "A")],
    "one slide": [("s1", "a", "A")],
    "a class with one slide": [*((f"s{i}", "ab"[i % 2], "AB"[i // 4]) for i in range(8)), ("s8", "c", "A")],
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("plugin", EVALUATORS)
def test_a_small_dataset_leaves_metrics_out_with_their_reasons(tmp_path, name, plugin):
    manifest, x = table(tmp_path / "m.csv", SMALL[name])
    got = evaluate(plugin, open_dataset("mine", manifest, neighbours=3), x)
    assert got.failed == {}
    for metric in ALL[plugin]:
        there = any(key.split("/")[2].startswith(metric) for key in got.metrics)
        assert there or any(note.startswith(f"{metric}: ") for note in got.notes), metric
    assert all(-1 <= value for value in got.metrics.values())


def test_a_probe_tests_two_classes_or_is_left_out(tmp_path):
    manifest, x = table(tmp_path / "m.csv", SMALL["three slides"])
    got = evaluate("probe", open_dataset("mine", manifest), x)
    assert got.metrics == {} and all("no slide of b" in note for note in got.notes)
    manifest, x = table(tmp_path / "n.csv", SMALL["a class with one slide"])
    got = evaluate("probe", open_dataset("mine", manifest), x)
    assert "probe/mine/linear_id" in got.metrics and any("no slide of c" in note for note in got.notes)


def test_a_validation_part_that_leaves_one_class_is_no_error_of_the_solver():
    labels, groups = np.repeat(["a", "b"], 6), np.repeat([0, 1], 6)
    x = np.random.default_rng(0).normal(size=(12, 4))
    with pytest.raises(Unfit, match="a: 1, b: 1"):
        linear_probe(x, labels, x, labels, train_groups=groups)
    with pytest.raises(Unfit, match="at least two groups"):
        grouped_split(labels, np.zeros(12), 0.25, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_features_that_are_all_the_same_are_not_judged(tmp_path, value):
    data = cohort(slides=4, patches=4)
    dataset = open_dataset("mine", data.write(tmp_path / "m.csv"), neighbours=3)
    for plugin in EVALUATORS:
        with pytest.raises(Unfit, match="the same features"):
            evaluate(plugin, dataset, np.full(data.x.shape, value, np.float32))


def test_a_mistake_in_one_metric_is_traced_and_the_others_are_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(EVALUATORS, "probe", f"{__name__}:Broken")
    data = cohort(slides=2, patches=4)
    with caplog.at_level(logging.ERROR):
        got = evaluate("probe", open_dataset("mine", data.write(tmp_path / "m.csv")), data.x)
    assert got.metrics == {"probe/mine/fine": 0.25} and isinstance(got.failed["wrong"], ZeroDivisionError)
    assert "Traceback" in caplog.text and "a mistake of the metric" in caplog.text


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two datasets, `good` and `bad`, with features that `set_bad` decides for the second."""
    data, bad = cohort(slides=4, patches=4), {}

    def features_of(dataset, encoder, device, settings):
        if dataset.name == "good":
            return data.x
        if isinstance(bad["x"], Exception):
            raise bad["x"]
        return bad["x"]

    monkeypatch.setattr(job, "features_of", features_of)
    (tmp_path / "b").mkdir()
    paths = {"bad": data.write(tmp_path / "b" / "bad.csv"), "good": data.write(tmp_path / "good.csv")}
    own = {name: DatasetConfig(manifest_csv=path, neighbours=3) for name, path in paths.items()}
    judge = Judge([PluginConfig("pathorob", datasets=own), PluginConfig("probe", datasets=own)], str(tmp_path))
    return judge, bad, data.x


@pytest.mark.parametrize("kind", ["nan", "inf", "zero row", "unreadable image"])
def test_a_dataset_that_fails_is_recorded_and_the_other_one_is_judged(two, kind):
    judge, bad, x = two
    bad["x"] = x.copy()
    if kind == "unreadable image":
        bad["x"] = UserError("images of the dataset cannot be encoded", file="7.png")
    else:
        bad["x"][5] = {"nan": np.nan, "inf": np.inf, "zero row": 0.0}[kind]
    got = judge.judge("encoder", {"pathorob": ["ri"], "probe": ["knn"]}, CPU, 0)
    assert "pathorob/good/ri" in got.metrics and "probe/good/knn_id" in got.metrics
    assert any(key.startswith("pathorob/bad") for key in got.failed) and "pathorob/bad/ri" not in got.metrics


def test_where_nothing_is_left_the_evaluation_fails_with_the_reason(two):
    judge, bad, _ = two
    judge.plugins = [PluginConfig("probe", datasets={"bad": judge.plugins[0].datasets["bad"]})]
    bad["x"] = UserError("images of the dataset cannot be encoded", file="7.png")
    with pytest.raises(UserError, match=r"7\.png"):
        judge.judge("encoder", {"probe": ["knn"]}, CPU, 0)


def test_storage_that_does_not_answer_is_tried_again_and_not_recorded(two):
    judge, bad, _ = two
    bad["x"] = StorageError("no answer", file="s3://bucket/7.png")
    with pytest.raises(StorageError):
        judge.judge("encoder", {"probe": ["knn"]}, CPU, 0)


def test_a_manifest_that_is_gone_costs_its_own_dataset_only(two, tmp_path):
    judge, _, _ = two
    (tmp_path / "b" / "bad.csv").unlink()
    got = judge.judge("encoder", {"pathorob": ["ri"]}, CPU, 0)
    assert "pathorob/good/ri" in got.metrics and "bad.csv" in got.failed["pathorob/bad"]
