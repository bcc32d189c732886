"""A bootstrap over slides for the clustering score: 95% of the resamples, always within the score's own range.

The clusters stay as they are; slides are drawn with replacement, and every pair of patches counts as often as both are
drawn. Two copies of one slide make no pairs with each other: they would always agree. Not here: the clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import Interval, cluster_counts, percentile_interval

Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

RESAMPLES, SEED = 500, 0
LEAST_DEFINED = 0.5  # share of the resamples in which some pair still has its four cells


@dataclass(frozen=True)
class Clustered:
    """The rows of one pair of classes and centres, and their clusters in every trial `[trials, rows]`."""

    rows: Ints
    clusters: npt.NDArray[Any]


def score_interval(
    score: float, pairs: Sequence[Clustered], labels: Labels, centers: Labels, slides: Labels
) -> Interval | None:
    """The middle 95% of the score over resampled slides; None where most resamples lose a class or a centre of every
    pair, so that too few slides are there to say."""
    names, slide = np.unique(slides, return_inverse=True)
    drawn = []
    for weights in cluster_counts(names.size, RESAMPLES, SEED):
        each = np.stack([_resample_pair(pair, labels, centers, slide, weights) for pair in pairs])
        there = np.isfinite(each)
        total = np.where(there, each, 0.0).sum(axis=0)
        drawn.append(np.divide(total, there.sum(axis=0), out=np.full(len(weights), np.nan), where=there.any(axis=0)))
    values = np.concatenate(drawn)
    if np.isfinite(values).mean() < LEAST_DEFINED:
        return None
    low, high = percentile_interval(values)
    return Interval(score, max(-1.0, low), min(1.0, high), 0.95, names.size)


def _resample_pair(pair: Clustered, labels: Labels, centers: Labels, slide: Ints, weights: Doubles) -> Doubles:
    """`[resamples]`: the score, mean over the trials; NaN where a resample has no patch of some class and centre."""
    own, mine = np.unique(slide[pair.rows], return_inverse=True)
    w = weights[:, own]
    kind = np.unique(labels[pair.rows], return_inverse=True)[1]
    site = np.unique(centers[pair.rows], return_inverse=True)[1]
    cells = _counts(mine, 2 * kind + site, 4, len(own))
    values = np.zeros(len(w))
    for clusters in pair.clusters:
        code = clusters.astype(np.int64)
        values += _rand(mine, code, kind, w) - _rand(mine, code, site, w)
    whole = ((w @ cells) > 0).all(axis=1)
    return np.where(whole, values / len(pair.clusters), np.nan)


def _rand(slide: Ints, a: Ints, b: Ints, w: Doubles) -> Doubles:
    """Hubert and Arabie's index of two partitions `[rows]` on each resample of slides `[resamples]`."""
    size_a, size_b, slides = int(a.max()) + 1, int(b.max()) + 1, w.shape[1]
    both = _pairs(_counts(slide, a * size_b + b, size_a * size_b, slides), w)
    in_a, in_b = (_pairs(_counts(slide, x, n, slides), w) for x, n in ((a, size_a), (b, size_b)))
    total = _pairs(_counts(slide, np.zeros_like(a), 1, slides), w)
    expected = np.divide(in_a * in_b, total, out=np.zeros_like(total), where=total > 0)
    span = (in_a + in_b) / 2 - expected
    return np.divide(both - expected, span, out=np.ones_like(total), where=np.abs(span) > 1e-9)


def _counts(slide: Ints, cell: Ints, cells: int, slides: int) -> Doubles:
    """`[slides, cells]`: patches of each slide in each cell."""
    return np.bincount(slide * cells + cell, minlength=slides * cells).reshape(slides, cells).astype(np.float64)


def _pairs(counts: Doubles, w: Doubles) -> Doubles:
    """`[resamples]`: pairs of patches in the same cell, those of two copies of one slide left out."""
    inside = (counts * (counts - 1) / 2).sum(axis=1)
    across = ((w @ counts) ** 2).sum(axis=1) - (w**2) @ (counts**2).sum(axis=1)
    found: Doubles = across / 2 + w @ inside
    return found
