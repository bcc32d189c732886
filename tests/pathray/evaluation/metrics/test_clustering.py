"""Clusters, silhouettes and scores against scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics.clustering import adjusted_rand, clustering_score, pairs, silhouette
from tests.builders.evaluation import cohort


def unit(n=300, dim=8, clusters=5, seed=0, noise=0.3):
    g = np.random.default_rng(seed)
    x = g.normal(size=(clusters, dim))[g.integers(0, clusters, n)] + noise * g.normal(size=(n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("k", [2, 6, 40])
def test_the_silhouette_is_scikit_learns(k, copies):
    x = unit()
    if copies:
        x = x[np.random.default_rng(k).integers(0, 150, len(x))]
    labels = np.random.default_rng(k).integers(0, k, len(x))
    labels[0] = labels.max() + 1  # a cluster of one
    labels = np.unique(labels, return_inverse=True)[1]
    assert silhouette(x, labels) == pytest.approx(silhouette_score(x, labels, metric="cosine"), abs=1e-10)


def test_copies_in_two_clusters_have_no_silhouette():
    """All distances are 0 or rounding, which must not be divided by rounding."""
    points = unit(3, 16, noise=1.0)
    rows = np.repeat(np.arange(3), 40)
    assert silhouette(points[rows], 2 * rows + np.arange(120) % 2) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sizes", [(10, 10, 10), (1, 120, 3, 40)])
def test_the_score_is_that_of_scikit_learns_clusters(sizes):
    data = cohort(sizes=sizes, biology=2.0, shortcut=1.0, centers=2, classes=3)
    got = clustering_score(data.x, data.labels, data.centers, data.slides, ks=range(2, 8), trials=4)
    x = data.x / np.linalg.norm(data.x, axis=1, keepdims=True)
    assert len(got.pairs) == 3 and got.score == pytest.approx(np.mean([p.score for p in got.pairs]))
    assert got.interval.estimate == pytest.approx(got.score)
    for pair, classes in zip(got.pairs, combinations(("y0", "y1", "y2"), 2), strict=True):
        assert (pair.classes, pair.centers) == (classes, ("c0", "c1"))
        rows = np.isin(data.labels, classes)
        best = {}
        for k in range(2, 8):
            fit = KMeans(k, init="random", n_init=20, random_state=0).fit(x[rows])
            best[k] = silhouette_score(x[rows], fit.labels_, metric="cosine")
        assert best[pair.k] == pytest.approx(max(best.values()), abs=5e-3)
        fit = KMeans(pair.k, init="random", n_init=50, random_state=0).fit(x[rows])
        by_class = adjusted_rand_score(data.labels[rows], fit.labels_)
        by_center = adjusted_rand_score(data.centers[rows], fit.labels_)
        assert pair.score == pytest.approx(by_class - by_center, abs=0.1)


def test_the_same_features_give_the_same_score():
    data = cohort(slides=2, patches=8)
    one, two = (clustering_score(data.x, data.labels, data.centers, ks=range(2, 5), trials=3) for _ in range(2))
    assert one == two


def test_the_rand_index_is_scikit_learns():
    g = np.random.default_rng(0)
    for classes, clusters, n in ((2, 2, 50), (5, 30, 400), (1, 3, 20), (1, 1, 9), (7, 7, 7)):
        a, b = g.integers(0, classes, n), g.integers(0, clusters, n).astype(np.uint8)
        b = np.where(g.random(n) < 0.5, a, b)
        assert adjusted_rand(a.astype(str), b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_exact_copies_are_clustered_as_scikit_learn_does():
    """Four points, a hundred times each: more clusters than that have no silhouette to gain."""
    labels, centers = np.repeat(["a", "b"], 200), np.tile(["p", "q"], 200)
    corner = {("a", "p"): [3, 0, 1], ("a", "q"): [3, 1, 1], ("b", "p"): [0, 3, 1], ("b", "q"): [1, 3, 1]}
    x = np.array([corner[pair] for pair in zip(labels.tolist(), centers.tolist(), strict=True)], float)
    got = clustering_score(x, labels, centers, ks=range(2, 9), trials=3)
    fit = KMeans(4, init="random", n_init=50, random_state=0).fit(x / np.linalg.norm(x, axis=1, keepdims=True))
    by_class, by_center = (adjusted_rand_score(values, fit.labels_) for values in (labels, centers))
    assert got.pairs[0].k == 4
    assert (got.pairs[0].ari_class, got.pairs[0].ari_center) == pytest.approx((by_class, by_center))


def test_a_centre_of_one_class_takes_part_in_no_pair():
    data = cohort(slides=2, patches=6, centers=3)
    keep = (data.centers != "c2") | (data.labels == "y0")
    rows = data.x[keep], data.labels[keep], data.centers[keep]
    got = clustering_score(*rows, ks=range(2, 4), trials=2)
    assert [pair.centers for pair in got.pairs] == [("c0", "c1")]
    inside = data.centers != "c2"
    alone = clustering_score(data.x[inside], data.labels[inside], data.centers[inside], ks=range(2, 4), trials=2)
    assert got == alone


def test_pairs_need_all_four_cells():
    labels = np.array(["a", "a", "b", "b", "c"])
    centers = np.array(["p", "q", "p", "q", "p"])
    assert [pair for pair, _ in pairs(labels, centers)] == [(("a", "b"), ("p", "q"))]
    with pytest.raises(Unfit, match="two centres"):
        clustering_score(np.eye(5), labels, np.array(["p"] * 5))


def test_features_that_are_not_finite_are_refused_by_row():
    data = cohort(slides=2, patches=4)
    data.x[3, 1] = np.nan
    with pytest.raises(UserError, match=r"finite.*row: 3"):
        clustering_score(data.x, data.labels, data.centers)
