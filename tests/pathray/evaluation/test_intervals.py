"""Intervals stay in the range of their metric: the clustering score's resamples slides, the drop's ends at −1."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics import clustering_interval
from pathray.evaluation.metrics.apd import _drops, _interval
from pathray.evaluation.metrics.clustering import clustering_score
from pathray.evaluation.metrics.clustering_interval import Clustered, score_interval
from tests.builders.evaluation import cohort


def by_hand(kinds, slides, clusters, drawn):
    """Hubert and Arabie's index, counted pair by pair; pairs of two copies of one slide are left out."""
    rows = [(copy, i) for copy, s in enumerate(drawn) for i in np.flatnonzero(slides == s)]
    both = a = b = total = 0
    for x, (copy_x, i) in enumerate(rows):
        for copy_y, j in rows[:x]:
            if copy_x != copy_y and slides[i] == slides[j]:
                continue
            same_a, same_b = clusters[i] == clusters[j], kinds[i] == kinds[j]
            both, a, b, total = both + (same_a and same_b), a + same_a, b + same_b, total + 1
    return (both - a * b / total) / ((a + b) / 2 - a * b / total)


def test_a_resample_is_scored_as_a_count_of_its_pairs_by_hand(monkeypatch):
    g = np.random.default_rng(1)
    slides = np.repeat(np.arange(8), 3)
    labels, centers = np.array(["a", "b"])[slides % 2], np.array(["p", "q"])[slides // 4]
    clusters = g.integers(0, 3, (2, 24))
    draws = [g.integers(0, 8, 8) for _ in range(12)]
    draws = [d for d in draws if all(((d % 2 == y) & (d // 4 == c)).any() for y in (0, 1) for c in (0, 1))][:4]
    weights = np.stack([np.bincount(d, minlength=8) for d in draws]).astype(float)
    monkeypatch.setattr(clustering_interval, "cluster_counts", lambda *_: [weights])
    got = score_interval(0.1, [Clustered(np.arange(24), clusters)], labels, centers, slides)
    score = [np.mean([by_hand(labels, slides, c, d) - by_hand(centers, slides, c, d) for c in clusters]) for d in draws]
    assert len(draws) == 4 and (got.low, got.high) == pytest.approx(tuple(np.quantile(score, [0.025, 0.975])))


@pytest.mark.parametrize("biology, shortcut", [(9.0, 0.0), (0.0, 9.0), (0.3, 0.3)])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_clustering_scores_interval_is_in_its_range_and_holds_the_score(biology, shortcut, classes):
    data = cohort(slides=4, patches=4, biology=biology, shortcut=shortcut, classes=classes)
    got = clustering_score(data.x, data.labels, data.centers, data.slides, ks=range(2, 5), trials=3)
    assert -1 <= got.interval.low <= got.interval.high <= 1
    assert got.interval.low - 0.05 <= got.score <= got.interval.high + 0.05
    again = clustering_score(data.x, data.labels, data.centers, data.slides, ks=range(2, 5), trials=3)
    assert again == got


def test_one_slide_a_cell_gives_a_score_without_an_interval():
    data = cohort(slides=1, patches=6)
    got = clustering_score(data.x, data.labels, data.centers, data.slides, ks=range(2, 4), trials=2)
    assert np.isfinite(got.score) and got.interval is None
    assert clustering_score(data.x, data.labels, data.centers, ks=range(2, 4), trials=2) == got


def test_a_drop_is_never_said_to_be_more_than_everything():
    few = np.array([[0.9, 0.1], [0.9, 0.9]])
    assert _interval(_drops(few)).low == -1
    assert _interval(np.array([-0.2, -0.1])).low == pytest.approx(-0.15 - 12.7062 * 0.05, abs=1e-4)
    with pytest.raises(Unfit, match="1 of 2 repetitions"):
        _interval(_drops(np.array([[0.0, 0.5], [0.5, 0.5]])))
