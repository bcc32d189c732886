"""The clustering score: do clusters follow the biology or the centres? (Kömen et al. 2025, arXiv 2507.17845)

    score = ARI(clusters, class) − ARI(clusters, centre)

for every pair of classes and pair of centres whose four cells have patches: K of 2 … 30 by the best cosine silhouette,
then 50 k-means of that K, averaged; the mean over the pairs. Best is 1, worst −1. Not here: k-means itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics.clustering_interval import Clustered, score_interval
from pathray.evaluation.metrics.kmeans import Points, cluster, map_in_threads, reduce_features
from pathray.evaluation.metrics.robustness_index import normalise
from pathray.stats.bootstrap import Interval

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

KS = range(2, 31)
SEED = 1337
SELECTION_INITS, TRIALS, TRIAL_INITS = 20, 50, 5
SAME = 1e-12  # a cosine distance that float64 cannot tell from 0


@dataclass(frozen=True)
class PairScore:
    """Two classes at two centres: the number of clusters, and means over the trials."""

    classes: tuple[str, str]
    centers: tuple[str, str]
    k: int
    score: float
    ari_class: float
    ari_center: float


@dataclass(frozen=True)
class ClusteringScore:
    """`score` is the mean of the pairs'; `interval` the middle 95% over resampled slides, where they are given and are
    enough of them."""

    score: float
    interval: Interval | None
    pairs: tuple[PairScore, ...]


def clustering_score(
    features: Floats,
    labels: Labels,
    centers: Labels,
    slides: Labels | None = None,
    *,
    ks: Sequence[int] = KS,
    trials: int = TRIALS,
    seed: int = SEED,
) -> ClusteringScore:
    """Of features `[N, D]` (any scale: they are normalised here) with a class and a centre per row.

    Equal input, equal score: k-means starts from rows drawn by `seed`. UserError for features that are not finite,
    Unfit where no two classes are both found at two centres. slides: a slide per row, for the interval.
    """
    unit = normalise(features)
    scores, clustered = list[PairScore](), list[Clustered]()
    for pair, rows in pairs(labels, centers):
        score, found = _score_pair(unit[rows], labels[rows], centers[rows], pair, ks, trials, seed)
        scores.append(score)
        clustered.append(Clustered(rows, found))
    if not scores:
        sizes = f"{np.unique(labels).size} classes, {np.unique(centers).size} centres"
        raise Unfit("no two classes are both found at two centres", key="clustering score", found=sizes)
    mean = float(np.mean([pair.score for pair in scores]))
    interval = None if slides is None else score_interval(mean, clustered, labels, centers, slides)
    return ClusteringScore(mean, interval, tuple(scores))


def pairs(labels: Labels, centers: Labels) -> Iterator[tuple[tuple[tuple[Any, Any], tuple[Any, Any]], Ints]]:
    """(two classes, two centres) and the rows of their four cells, where none of these is empty; by name."""
    for classes in combinations(np.unique(labels), 2):
        for sites in combinations(np.unique(centers), 2):
            inside = np.isin(labels, classes) & np.isin(centers, sites)
            if all((inside & (labels == c) & (centers == s)).any() for c in classes for s in sites):
                yield (classes, sites), np.flatnonzero(inside)


def silhouette(unit: Doubles, labels: Ints) -> float:
    """Mean cosine silhouette of unit vectors `[N, D]` with labels `[N]`, as scikit-learn's, in O(N·K·D): the mean
    distance to a cluster is one minus the product with its mean."""
    k = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=k)
    sums = (labels[None] == np.arange(k)[:, None]).astype(np.float64) @ unit
    total = sizes - unit @ sums.T  # summed distance of every row to every cluster, its own 0 included
    rows = np.arange(len(unit))
    own = sizes[labels]
    within = total[rows, labels] / np.maximum(own - 1, 1)
    mean = np.where(sizes > 0, total / np.maximum(sizes, 1), np.inf)
    mean[rows, labels] = np.inf
    other = mean.min(axis=1)
    larger = np.maximum(within, other)
    alike = larger <= SAME  # copies in two clusters: rounding must not be divided by rounding
    value = np.divide(other - within, larger, out=np.zeros(len(unit)), where=~alike)
    return float(np.where(own > 1, value, 0.0).mean())


def adjusted_rand(a: Labels, b: Labels) -> float:
    """Hubert and Arabie's index of two partitions `[N]`, as scikit-learn's: 1 for equal ones, about 0 for chance."""
    a, b = (np.unique(values, return_inverse=True)[1] for values in (a, b))
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)

    def together(counts: Ints) -> float:
        return float((counts * (counts - 1)).sum()) / 2

    both, first, second = together(table), together(table.sum(axis=1)), together(table.sum(axis=0))
    expected, most = first * second / max(together(np.array([len(a)])), 1.0), (first + second) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


def _score_pair(
    unit: Doubles,
    labels: Labels,
    centers: Labels,
    pair: tuple[tuple[Any, Any], tuple[Any, Any]],
    ks: Sequence[int],
    trials: int,
    seed: int,
) -> tuple[PairScore, npt.NDArray[Any]]:
    """The pair's score, and the clusters of its trials `[trials, rows]`."""
    from sklearn.exceptions import ConvergenceWarning

    points = reduce_features(unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of copies: fewer distinct points than clusters
        k = _choose_k(unit, points, [k for k in ks if k < len(unit)], seed)
        found = map_in_threads(lambda trial: cluster(points, k, TRIAL_INITS, seed + trial), range(trials))
    by_class = float(np.mean([adjusted_rand(labels, clusters) for clusters in found]))
    by_center = float(np.mean([adjusted_rand(centers, clusters) for clusters in found]))
    classes, sites = ((str(a), str(b)) for a, b in pair)
    return PairScore(classes, sites, k, by_class - by_center, by_class, by_center), np.stack(found)


def _choose_k(unit: Doubles, points: Points, ks: Sequence[int], seed: int) -> int:
    """The number of clusters of the best silhouette, the smallest of equals."""

    def measure(k: int) -> float:
        return silhouette(unit, cluster(points, k, SELECTION_INITS, seed).astype(np.int64))

    largest_first = sorted(ks, reverse=True)  # so that no thread is left with the longest
    scores = dict(zip(largest_first, map_in_threads(measure, largest_first), strict=True))
    return max(ks, key=lambda k: (scores[k], -k))
