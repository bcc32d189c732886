"""Clusters of features against scikit-learn's on the same features, before anything is left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info, threadpool_limits

from pathray.evaluation.metrics.kmeans import KEPT, cluster, map_in_threads, reduce_features


def unit(n=300, dim=8, clusters=5, noise=1.0):
    g = np.random.default_rng(0)
    x = g.normal(size=(clusters, dim))[g.integers(0, clusters, n)] + noise * g.normal(size=(n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def inertia(x, labels):
    return sum(((x[labels == k] - x[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


@pytest.mark.parametrize("k", [2, 7, 30])
def test_clusters_are_those_of_the_whole_features(k):
    x = unit()
    x = np.concatenate([x, 1e-3 * np.random.default_rng(1).normal(size=(len(x), 40))], axis=1)
    points = reduce_features(x)
    assert points.coordinates.shape == (300, 8)
    labels = cluster(points, k, 6, seed=3)
    oracle = KMeans(k, init="random", n_init=6, random_state=3).fit(x)
    assert inertia(x, labels) == pytest.approx(oracle.inertia_, rel=1e-3)
    assert adjusted_rand_score(labels, oracle.labels_) > 0.97


def test_as_many_components_are_kept_as_hold_the_variance():
    x = np.random.default_rng(0).normal(size=(4_000, 30)) / np.arange(1, 31) ** 2 + 5
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    share = np.cumsum(values) / values.sum()
    points = reduce_features(x)
    kept = points.coordinates.shape[1]
    assert share[kept - 2] < KEPT <= share[kept - 1] and kept < 30
    arrived = points.tolerance * points.coordinates.var(axis=0).mean()
    assert arrived == pytest.approx(1e-4 * x.var(axis=0).mean(), rel=1e-3)


def test_equal_seeds_give_equal_labels_and_others_other_starts():
    points = reduce_features(unit())
    assert np.array_equal(cluster(points, 9, 1, seed=0), cluster(points, 9, 1, seed=0))
    assert not np.array_equal(cluster(points, 9, 1, seed=0), cluster(points, 9, 1, seed=1))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_copies_are_never_in_two_clusters():
    points = reduce_features(np.repeat(unit(4), 25, axis=0))
    labels = cluster(points, 6, 2, seed=0).reshape(4, 25)
    assert (labels == labels[:, :1]).all() and len(set(labels[:, 0].tolist())) == 4


def test_features_that_are_all_the_same_are_one_cluster():
    points = reduce_features(np.ones((20, 5)))
    assert np.isfinite(points.tolerance) and set(cluster(points, 1, 1, seed=0).tolist()) == {0}


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_a_fit_has_one_thread_so_that_sums_have_one_order(monkeypatch, in_a_thread):
    seen, fit = [], KMeans.fit

    def watched(self, x, *arguments):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")
        return fit(self, x, *arguments)

    monkeypatch.setattr(KMeans, "fit", watched)
    points = reduce_features(unit())
    with threadpool_limits(4):
        if in_a_thread:
            map_in_threads(lambda seed: cluster(points, 3, 1, seed), range(3))
        else:
            cluster(points, 3, 1, seed=0)
    assert seen and set(seen) == {1}


@pytest.mark.parametrize("threads", [1, 3])
def test_work_in_threads_keeps_its_order(threads):
    with threadpool_limits(threads):
        assert map_in_threads(lambda i: map_in_threads(lambda j: i * j, [1, 2]), [3, 1, 2]) == [[3, 6], [1, 2], [2, 4]]
