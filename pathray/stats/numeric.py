"""Scores of predicted numbers and of predicted ranks (ordered classes), with the reason where one is not defined.

Not here: the formulas for numbers (pathray.stats.scores), classes without an order (pathray.stats.classification).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pathray.stats import confusion
from pathray.stats.estimates import ScoreSet
from pathray.stats.scores import regression_scores
from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def regression_set(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> ScoreSet:
    """r2, mae and pearson of numbers `[N]`, see `regression_scores`.

    A constant truth has no r2 and no pearson, a constant prediction no pearson; also within a resample. ValueError for
    unequal shapes, no rows, NaN or inf.
    """
    y, p = _numbers(truth, predicted)
    scores = regression_scores(y, p)

    def values(w: Floats) -> dict[str, Floats]:
        found = {name: score(w) for name, score in scores.items()}
        still = _constant(y, w)
        found["r2"] = np.where(still, np.nan, found["r2"])
        found["pearson"] = np.where(still | _constant(p, w), np.nan, found["pearson"])
        return found

    everywhere = np.ones((1, y.size))
    reasons = {"pearson": "the prediction is constant"} if _constant(p, everywhere)[0] else {}
    if _constant(y, everywhere)[0]:
        reasons = dict.fromkeys(("r2", "pearson"), "the truth is constant")
    return ScoreSet(y.size, values, reasons)


def ordinal_set(truth: npt.ArrayLike, predicted: npt.ArrayLike, k: int) -> ScoreSet:
    """mae_ranks (mean of |truth − predicted|) and quadratic_kappa of ranks 0 … k−1 `[N]`.

    κ is undefined where truth and prediction are the same one rank in all rows. ValueError for unequal shapes, no rows,
    and what is no rank.
    """
    numbers = _numbers(truth, predicted)
    for name, given in zip(("truth", "predicted"), numbers, strict=True):
        wrong = ~np.isin(given, np.arange(k))
        if wrong.any():
            raise ValueError(
                f"{name} must be in 0 … {k - 1}, found {given[wrong][0]:g} in row {np.flatnonzero(wrong)[0]}"
            )
    y, p = (given.astype(np.int64) for given in numbers)
    apart = np.abs(y - p).astype(np.float64)

    def values(w: Floats) -> dict[str, Floats]:
        matrices = confusion.confusion_matrices(y, p, k, w)
        return {
            "mae_ranks": ratio(w @ apart, w.sum(axis=1)),
            "quadratic_kappa": confusion.kappa(matrices, quadratic=True),
        }

    one = np.unique(np.append(y, p)).size == 1
    return ScoreSet(y.size, values, {"quadratic_kappa": f"truth and prediction are {y[0]} in all rows"} if one else {})


def _numbers(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    y, p = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if y.ndim != 1 or y.size == 0 or p.shape != y.shape:
        raise ValueError(f"truth and predictions must both be [N], N > 0; found {y.shape} and {p.shape}")
    for name, given in (("truth", y), ("predictions", p)):
        if not np.isfinite(given).all():
            raise ValueError(f"{name} not finite: {given[~np.isfinite(given)][0]}")
    return y, p


def _constant(x: Floats, w: Floats) -> npt.NDArray[np.bool_]:
    """`[R]`: all rows that count have the same x `[N]`."""
    low, high = np.where(w > 0, x, np.inf).min(axis=1), np.where(w > 0, x, -np.inf).max(axis=1)
    same: npt.NDArray[np.bool_] = low >= high
    return same
