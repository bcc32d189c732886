"""Scores of predictions as functions of row weights, and their intervals over clusters of rows (such as persons).

A score takes weights `[R, N]`, how often each of N rows counts in each of R resamples, and gives `[R]`; a score that is
not defined for a resample is NaN. So one resampling serves any score, and two models are compared on the same one. No
torch. Not here: resampling itself (pathray.stats.bootstrap), correlations of many columns (pathray.stats.correlation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import Interval, cluster_codes, percentile_interval
from pathray.stats.ranking import Ranking
from pathray.stats.weights import mean_of_defined, ratio, row_weights

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Score = Callable[[Floats], Floats]


def classification_scores(truth: Ints, probabilities: Floats) -> dict[str, Score]:
    """accuracy, balanced_accuracy (mean recall of the classes) and auc (macro, one against the rest; ties count half)
    of classes 0 … K−1 `[N]` and probabilities `[N, K]`. For two classes auc is the usual one."""
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    member = (truth[:, None] == np.arange(probabilities.shape[1])).astype(np.float64)
    columns = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    rankings = [Ranking.of(truth == k, probabilities[:, k]) for k in columns]
    return {
        "accuracy": lambda w: ratio(w @ right, w.sum(axis=1)),
        "balanced_accuracy": lambda w: mean_of_defined(ratio(w @ (member * right[:, None]), w @ member)),
        "auc": lambda w: mean_of_defined(np.stack([r.auroc(w) for r in rankings], 1)),
    }


def regression_scores(truth: Floats, predicted: Floats) -> dict[str, Score]:
    """r2 (against the mean of the rows that count), mae and pearson of numbers `[N]`."""

    def r2(w: Floats) -> Floats:
        mean = ratio(w @ truth, w.sum(axis=1))
        spread = w @ np.square(truth) - w.sum(axis=1) * np.square(mean)
        return 1 - ratio(w @ np.square(truth - predicted), spread)

    return {
        "r2": r2,
        "mae": lambda w: ratio(w @ np.abs(truth - predicted), w.sum(axis=1)),
        "pearson": lambda w: _pearson(truth - truth.mean(), predicted - predicted.mean(), w),
    }


def cluster_interval(
    score: Score, clusters: npt.ArrayLike, *, minus: Score | None = None, level: float = 0.95, resamples: int = 2000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """A score, or its difference to the score `minus`, with the percentile interval over whole clusters `[N]`.

    Its ends are NaN for fewer than two clusters, or where no resample defines the score.
    """
    n = np.asarray(clusters).shape[0]
    codes = cluster_codes(clusters, n)
    count = int(codes.max(initial=-1)) + 1

    def value(w: Floats) -> Floats:
        return score(w) if minus is None else score(w) - minus(w)

    estimate = float(value(np.ones((1, n)))[0])
    if count < 2:
        return Interval(estimate, float("nan"), float("nan"), level, count)
    drawn = np.concatenate([value(w) for w in row_weights(codes, count, resamples=resamples, seed=seed)])
    ends = percentile_interval(drawn, level) if np.isfinite(drawn).any() else (float("nan"), float("nan"))
    return Interval(estimate, *ends, level, count)


def intervals(
    scores: Mapping[str, Score], clusters: npt.ArrayLike, *, resamples: int, seed: int
) -> dict[str, Interval]:
    """Each score with its interval, on the same resamples."""
    return {name: cluster_interval(s, clusters, resamples=resamples, seed=seed) for name, s in scores.items()}


def _pearson(x: Floats, y: Floats, w: Floats) -> Floats:
    total = w.sum(axis=1)
    mean_x, mean_y = ratio(w @ x, total), ratio(w @ y, total)
    shared = w @ (x * y) - total * mean_x * mean_y
    spread = (w @ x**2 - total * mean_x**2) * (w @ y**2 - total * mean_y**2)
    return ratio(shared, np.sqrt(np.where(spread > 1e-24, spread, 0)))
