"""The tuning section: what would leave nothing to evaluate, or pick the worst model, is refused by its key."""

import pytest

from pathray.errors import UserError
from pathray.evaluation.settings import (
    DatasetConfig,
    EarlyStoppingConfig,
    EveryConfig,
    ExecutionConfig,
    PluginConfig,
    SelectionConfig,
    TuningConfig,
    poll_every_steps,
)


def tuning(*, selection=None, **given):
    plugin = PluginConfig(datasets={"camelyon": DatasetConfig("m.csv")}, **given)
    stopping = EarlyStoppingConfig(enable=selection is not None, selection=selection or SelectionConfig())
    return TuningConfig(enable=True, plugins=[plugin], early_stopping=stopping)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TuningConfig(enable=True), r"nothing to evaluate.*tuning\.plugins"),
        (lambda: TuningConfig(enable=True, plugins=[PluginConfig()]), r"without a dataset.*tuning\.plugins\[0\]"),
        (lambda: PluginConfig("pathorobb"), "pathorob"),
        (lambda: PluginConfig(features="patch"), r"features"),
        (lambda: PluginConfig(embedding="tsne"), r"embedding"),
        (lambda: ExecutionConfig(device="gpu"), r"tuning\.execution\.device"),
        (lambda: ExecutionConfig(max_pending_jobs=0), r"max_pending_jobs"),
        (lambda: ExecutionConfig(poll_every_steps="often"), r"poll_every_steps"),
        (lambda: ExecutionConfig(coalesce_policy="oldest"), r"coalesce_policy"),
        (lambda: EveryConfig(-1), r"every_n_evals"),
        (lambda: tuning(selection=SelectionConfig(plugin="probe")), r"selection\.plugin"),
        (lambda: tuning(selection=SelectionConfig(dataset="tcga")), r"selection\.dataset"),
        (lambda: tuning(selection=SelectionConfig(metric="apd"), apd=EveryConfig(0)), r"switched off.*apd"),
        (
            lambda: tuning(selection=SelectionConfig(metric="apd_average")),
            r"no such metric.*selection\.metric.*apd_avg",
        ),
        (
            lambda: tuning(ri=EveryConfig(0), apd=EveryConfig(0), clustering=EveryConfig(0)),
            r"every metric is switched off.*tuning\.plugins\[0\]",
        ),
    ],
)
def test_a_senseless_section_is_refused_by_its_key(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("metric", ["ri", "apd", "apd_ood", "clustering"])
def test_a_direction_that_would_pick_the_worst_model_is_refused(metric):
    with pytest.raises(UserError, match="larger is better"):
        tuning(selection=SelectionConfig(metric=metric, mode="min"))
    assert tuning(selection=SelectionConfig(metric=metric)).early_stopping.selection.mode == "max"


def test_an_evaluator_is_listed_once():
    own = PluginConfig(datasets={"camelyon": DatasetConfig("m.csv")})
    with pytest.raises(UserError, match="listed twice"):
        TuningConfig(enable=True, plugins=[own, own])


def test_paths_of_all_datasets_are_made_absolute():
    own = {"a": DatasetConfig("m.csv", reduced_csv="r.csv", root="images"), "b": DatasetConfig(None)}
    found = TuningConfig(plugins=[PluginConfig(datasets=own)]).map_paths(lambda p: p and f"/x/{p}").plugins[0].datasets
    assert (found["a"].manifest_csv, found["a"].reduced_csv, found["a"].root) == ("/x/m.csv", "/x/r.csv", "/x/images")
    assert (found["b"].manifest_csv, found["b"].root) == (None, "")


@pytest.mark.parametrize(
    ("every", "tune_every", "batch", "steps"), [("auto", 1_000_000, 128, 391), ("auto", 100, 128, 1), ("7", 1, 1, 7)]
)
def test_the_poll_cadence_is_a_twentieth_of_the_evaluations(every, tune_every, batch, steps):
    config = TuningConfig(tune_every=tune_every, execution=ExecutionConfig(poll_every_steps=every))
    assert poll_every_steps(config, batch) == steps


def test_the_direction_of_a_probe_is_known_too_and_its_metric_goes_by_its_short_name():
    def probing(**selection):
        plugin = PluginConfig("probe", datasets={"camelyon": DatasetConfig("m.csv")})
        stopping = EarlyStoppingConfig(True, SelectionConfig("probe", **selection))
        return TuningConfig(True, plugins=[plugin], early_stopping=stopping).early_stopping.selection.key

    assert probing(metric="linear") == "probe/camelyon/linear_id" and probing(metric="knn") == "probe/camelyon/knn_id"
    with pytest.raises(UserError, match="larger is better"):
        probing(metric="linear", mode="min")
