"""The newest features of all ranks, and the end of a run whose features have collapsed."""

import pickle

import numpy as np
import pytest
import torch

from pathray.evaluation.metrics.collapse import Newest
from pathray.train.collapse import CollapseStop, FeaturesCollapsed, LatestFeatures, collapse_signals
from pathray.train.recipe import TrainingStopped

LOW = {"target_feature_std": (0.001, 0.01)}


def test_features_of_several_ranks_are_evenly_spaced_ones_of_all():
    ranks = [Newest(4, 2) for _ in range(3)]
    for rank, newest in enumerate(ranks):
        newest.add(torch.tensor([[10.0 * rank + i, 0.0] for i in range(3)]))
    together = torch.cat([newest.features for newest in ranks])
    found = [newest.on_host(lambda own: together)[:, 0].tolist() for newest in ranks]
    assert found[0] == found[1] == found[2] == [0.0, 10.0, 20.0]  # 9 rows for a memory of 4: every third
    assert ranks[1].on_host()[:, 0].tolist() == [10.0, 11.0, 12.0]


def test_signals_and_figures_are_those_of_numpy():
    g = np.random.default_rng(0)
    target, student = g.normal(size=(40, 6)), 3 * g.normal(size=(40, 6))
    prediction = target + 0.1 * g.normal(size=(40, 6))
    features = {"target": target, "prediction": prediction, "student": student}
    latest = LatestFeatures(6)
    figures = latest.add({kind: torch.from_numpy(x) for kind, x in features.items()})
    for kind, x in features.items():
        assert float(figures[f"{kind}_std"]) == pytest.approx(x.std(axis=0).mean(), rel=1e-5)
    assert float(figures["explained"]) == pytest.approx(
        (1 - ((target - prediction) ** 2).sum(0) / ((target - target.mean(0)) ** 2).sum(0)).mean(), rel=1e-4
    )
    signals = collapse_signals(latest.on_host())
    sigma = np.linalg.svd(student, compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    assert signals["student_rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert signals["target_feature_std"] == pytest.approx(target.std(axis=0, ddof=1).mean(), rel=1e-5)


def test_one_feature_says_nothing():
    latest = LatestFeatures(3)
    assert collapse_signals(latest.on_host()) == {}


def test_only_so_many_bad_lines_in_a_row_end_a_run():
    stop = CollapseStop(lines=3)
    for images, low in ((10, {}), (20, LOW), (30, LOW), (40, {}), (50, LOW), (60, LOW)):
        stop.judge(low, images)
    assert stop.counts.tolist() == [2, 40]
    with pytest.raises(FeaturesCollapsed, match="good until 40 images") as error:
        stop.judge(LOW, 70)
    assert isinstance(error.value, TrainingStopped) and error.value.images_seen_good == 40
    assert "target_feature_std 0.001" in str(error.value) and "at least 0.01" in str(error.value)


def test_a_resumed_run_goes_on_counting():
    stop = CollapseStop(lines=2)
    stop.judge({}, 10)
    stop.judge(LOW, 20)
    resumed = CollapseStop(lines=2)
    resumed.load_state_dict(stop.state_dict())
    with pytest.raises(FeaturesCollapsed) as error:
        resumed.judge(LOW, 30)
    assert error.value.images_seen_good == 10


def test_the_error_names_a_checkpoint_also_after_a_pickle():
    error = FeaturesCollapsed("collapsed", key="collapse.stop")
    error.name_checkpoint("run/checkpoints/a-latest-1")
    assert "file: run/checkpoints/a-latest-1" in str(pickle.loads(pickle.dumps(error)))
    error.name_checkpoint("s3://user:secret@bucket/run/a-latest-1")
    assert "secret" not in str(error) + str(error.where)
    error.name_checkpoint(None)
    assert "no checkpoint from before" in str(error)
