"""Pearson and Spearman correlations of many columns at once, per gene or per sample, with their cluster bootstrap.

A column with a constant prediction or target has no correlation. It counts as 0 and is reported: excluding it would let
a model that collapsed on the hard genes score higher than one that did not. No torch; all sums in float64.

Not here: which rows are compared (the sciences), intervals of other statistics (pathray.stats.bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import Interval, cluster_codes, cluster_counts

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Method = Literal["spearman", "pearson"]

CONSTANT = 1e-12  # a spread below this share of the largest value is float64 rounding
# A network computes in float32: one number leaves it as several that differ in the last bits (2^-23), by the size of
# its batch and the order of its sums. A model that tells images apart varies by far more than 8 of them (1e-6).
CONSTANT_PREDICTION = 8 * 2.0**-23
GENES_AT_A_TIME, RESAMPLES_AT_A_TIME = 8, 256  # so that the data fit into the processor's cache


@dataclass(frozen=True)
class Correlation:
    """One correlation per gene (or sample) `[K]`, 0 where `undefined` `[K]`."""

    values: Floats
    undefined: Bools

    @property
    def mean(self) -> float:
        """The mean over all, with undefined ones as 0."""
        return float(self.values.mean())

    @property
    def n_undefined(self) -> int:
        return int(self.undefined.sum())


@dataclass(frozen=True)
class CorrelationIntervals:
    """Intervals of the mean over genes and of each gene's correlation."""

    mean: Interval
    genes: list[Interval]


def pearson(predictions: npt.ArrayLike, targets: npt.ArrayLike, *, samplewise: bool = False) -> Correlation:
    """Pearson's r of each column of predictions and targets `[N, K]`, or of each row with `samplewise`.

    ValueError for unequal shapes, fewer than two values per correlation, NaN or inf.
    """
    return correlation(predictions, targets, "pearson", samplewise=samplewise)


def spearman(predictions: npt.ArrayLike, targets: npt.ArrayLike, *, samplewise: bool = False) -> Correlation:
    """Spearman's ρ: Pearson's r of the ranks, where equal values share their average rank. Otherwise as `pearson`."""
    return correlation(predictions, targets, "spearman", samplewise=samplewise)


def correlation(
    predictions: npt.ArrayLike, targets: npt.ArrayLike, method: Method, *, samplewise: bool = False
) -> Correlation:
    """Pearson's r or Spearman's ρ, by `method`."""
    x, y = _columns(predictions, targets, samplewise)
    values, undefined = np.zeros(len(x)), np.zeros(len(x), np.bool_)
    for first in range(0, len(x), GENES_AT_A_TIME):
        part = slice(first, first + GENES_AT_A_TIME)
        a, b = np.ascontiguousarray(x[part]), np.ascontiguousarray(y[part])
        undefined[part] = _constant(a, CONSTANT_PREDICTION) | _constant(b, CONSTANT)
        values[part] = _pearson_rows(*(map(ranks, (a, b)) if method == "spearman" else (a, b)))
    return Correlation(np.where(undefined, 0.0, values), undefined)


def ranks(values: npt.NDArray[np.floating]) -> Floats:
    """Ranks 1…N within each row of `[K, N]`; equal values share their average rank."""
    out = np.empty(values.shape, np.float64)
    for row, ranked in zip(values, out, strict=True):
        _rank(row, ranked)
    return out


def bootstrap_correlation(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    method: Method = "spearman",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CorrelationIntervals:
    """Percentile intervals of the correlations of `[N, K]`, resampling whole clusters `[N]` (patients, sections).

    A resample draws clusters with replacement and repeats all rows of a cluster as often as it was drawn. Pearson needs
    only sums per cluster. For Spearman, ranks are recomputed *within each resample*: keeping the ranks of the whole
    sample would treat the genes' distributions as known, which is wrong for a handful of clusters and makes intervals
    too narrow. A gene that is constant in a resample counts as 0 there. All genes share the same draws, so the mean's
    interval includes their dependence. ValueError as in `pearson`, and for fewer than two clusters.
    """
    x, y = _columns(predictions, targets, False)
    codes = cluster_codes(clusters, x.shape[1])
    count = int(codes.max()) + 1
    if count < 2:
        raise ValueError(f"an interval needs at least two clusters, found {count}")
    estimate = correlation(x.T, y.T, method)
    x = np.where(
        _constant(x, CONSTANT_PREDICTION)[:, None], 0.0, x
    )  # rounding noise must not be ranked in a resample either
    drawn = np.empty((resamples, len(x)))
    done, of = 0, _pearson_draws if method == "pearson" else _spearman_draws
    for counts in cluster_counts(count, resamples, seed):
        for first in range(0, len(counts), RESAMPLES_AT_A_TIME):
            part = counts[first : first + RESAMPLES_AT_A_TIME]
            drawn[done : done + len(part)] = of(x, y, codes, part)
            done += len(part)
    tails = [0.5 - level / 2, 0.5 + level / 2]
    estimates = np.append(estimate.values, estimate.mean)
    low, high = np.quantile(np.column_stack([drawn, drawn.mean(axis=1)]), tails, axis=0)
    *genes, mean = [
        Interval(float(e), float(a), float(b), level, count) for e, a, b in zip(estimates, low, high, strict=True)
    ]
    return CorrelationIntervals(mean, genes)


def _columns(predictions: npt.ArrayLike, targets: npt.ArrayLike, samplewise: bool) -> tuple[Floats, Floats]:
    """Predictions and targets as `[K, N]`, one correlation per row."""
    x, y = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"predictions and targets must both be [N, K], found {x.shape} and {y.shape}")
    for name, values in (("predictions", x), ("targets", y)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"{name} are not finite: {values[row, column]} in row {row}, column {column}")
    if not samplewise:
        x, y = x.T, y.T
    if x.shape[1] < 2 or x.shape[0] < 1:
        raise ValueError(f"a correlation needs at least two values, found {x.shape[1]}")
    return x, y


def _constant(x: Floats, share: float) -> Bools:
    spread: Bools = np.ptp(x, axis=1) <= share * np.abs(x).max(axis=1)
    return spread


def _pearson_rows(x: Floats, y: Floats) -> Floats:
    """Pearson's r of each row of `[K, N]`; 0 for constant rows."""
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    above = np.einsum("kn,kn->k", x, y)
    below = np.sqrt(np.einsum("kn,kn->k", x, x)) * np.sqrt(np.einsum("kn,kn->k", y, y))
    r: Floats = np.clip(np.divide(above, below, out=np.zeros(len(x)), where=below > 0), -1, 1)
    return r


def _rank(values: npt.NDArray[np.floating], out: Floats) -> None:
    order = np.argsort(values)
    ordered = values[order]
    starts = _runs(ordered)
    if starts.size == values.size:
        out[order] = np.arange(1, values.size + 1)
        return
    lengths = np.diff(starts, append=values.size)
    out[order] = np.repeat(starts + (lengths + 1) / 2, lengths)


def _runs(ordered: npt.NDArray[np.floating]) -> Ints:
    """The start of each run of equal values."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def _pearson_draws(x: Floats, y: Floats, codes: Ints, counts: Floats) -> Floats:
    """Pearson's r `[R, K]` in each resample, from sums per cluster of the centred values `[K, N]`."""
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    member = np.zeros((codes.size, counts.shape[1]))
    member[np.arange(codes.size), codes] = 1.0
    n = (counts @ member.sum(axis=0))[:, None]
    sx, sy, sxx, syy, sxy = (counts @ (v @ member).T for v in (x, y, x * x, y * y, x * y))
    return _ratio(sxy - sx * sy / n, sxx - sx * sx / n, syy - sy * sy / n, sxx, syy)


def _spearman_draws(x: Floats, y: Floats, codes: Ints, counts: Floats) -> Floats:
    """Spearman's ρ `[R, K]` in each resample, with the ranks of that resample."""
    weights = np.ascontiguousarray(counts.T[codes], np.float32)  # [N, R]: how often each row was drawn
    centre = (weights.sum(axis=0, dtype=np.float64) / 2).astype(np.float32)
    out = np.empty((counts.shape[0], len(x)))
    for gene, (a, b) in enumerate(zip(x, y, strict=True)):
        rank_a, square_a = _drawn_ranks(a, weights, centre)
        rank_b, square_b = _drawn_ranks(b, weights, centre)
        rank_a *= weights
        above = np.einsum("nr,nr->r", rank_a, rank_b)
        out[:, gene] = _ratio(above, square_a, square_b, centre**3, centre**3)
    return out


def _drawn_ranks(
    values: Floats, weights: npt.NDArray[np.float32], centre: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Centred average ranks `[N, R]` of `values` `[N]` when row i was drawn weights[i, r] times, and Σ w·rank².

    A run of equal values has the average rank (Σ w before it) + (its own Σ w + 1) / 2; the mean rank is (Σ w + 1) / 2.
    """
    order = np.argsort(values)
    starts = _runs(values[order])
    drawn = weights[order]
    if starts.size < values.size:
        drawn = np.add.reduceat(drawn, starts, axis=0)
    rank = drawn.copy()
    for i in range(1, len(rank)):  # numpy's own cumsum along the first axis takes six times as long
        rank[i] += rank[i - 1]
    rank -= drawn / 2
    rank -= centre
    square = np.einsum("nr,nr,nr->r", drawn, rank, rank)
    run = np.empty(values.size, np.int64)
    run[order] = np.repeat(np.arange(starts.size), np.diff(starts, append=values.size))
    return rank[run], square


def _ratio(
    above: npt.ArrayLike, xx: npt.ArrayLike, yy: npt.ArrayLike, near_x: npt.ArrayLike, near_y: npt.ArrayLike
) -> Floats:
    """above / √(xx·yy), or 0 where a variance is only the rounding error of a sum as large as `near`."""
    sound = (np.asarray(xx) > CONSTANT * np.asarray(near_x)) & (np.asarray(yy) > CONSTANT * np.asarray(near_y))
    below = np.sqrt(np.where(sound, xx, 1.0).astype(np.float64) * np.where(sound, yy, 1.0))
    return np.clip(np.where(sound, above / below, 0.0), -1.0, 1.0)
