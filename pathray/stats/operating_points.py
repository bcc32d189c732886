"""Thresholds of a binary score: chosen on one set of rows, applied to any, with the rates that they give there.

A row is positive if its score is at least the threshold. A threshold is always one of the scores, so it is finite and
calls at least one row positive. Rates at a threshold chosen on the same rows are optimistic; their intervals hold the
threshold fixed. Not here: curves over all thresholds (pathray.stats.curves).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pathray.stats.estimates import Estimate, ScoreSet, estimate_scores
from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rule = Literal["youden", "sensitivity", "specificity"]
STABILITY_STEP = 0.01
GRADES = ((0.02, "A"), (0.05, "B"), (0.10, "C"))
ROUNDING = 1e-9  # a score this close to a threshold or rate is equal to it


@dataclass(frozen=True)
class Threshold:
    """A threshold and the rule that chose it; None with the `reason` where no score satisfies the rule."""

    rule: str
    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """The rates at a threshold: sensitivity, specificity, ppv and npv; its stability grade (`stability`)."""

    threshold: Threshold
    rates: dict[str, Estimate]
    sensitivity_change: float | None
    grade: str | None

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: no NaN, no infinity."""
        rates = {name: rate.as_json() for name, rate in self.rates.items()}
        out = {"rule": self.threshold.rule, "threshold": self.threshold.value, "reason": self.threshold.reason}
        return out | rates | {"sensitivity_change": self.sensitivity_change, "stability_grade": self.grade}


def choose_threshold(truth: npt.ArrayLike, score: npt.ArrayLike, rule: Rule, *, at_least: float = 0.95) -> Threshold:
    """The threshold for truth `[N]` (0 or 1) and scores `[N]`.

    ``youden``: the largest sensitivity + specificity − 1 (Youden 1950), the highest threshold of equals.
    ``sensitivity``: of those with a sensitivity of `at_least`, the best specificity, of equals the best sensitivity;
    ``specificity``: the other way round. ValueError as in `binary_rows`.
    """
    y, s = binary_rows(truth, score)
    name = rule if rule == "youden" else f"{rule} >= {at_least:g}"
    positives, negatives = int(y.sum()), int((~y).sum())
    if positives == 0 or negatives == 0:
        return Threshold(name, None, f"all rows are {'negative' if positives == 0 else 'positive'}")
    candidates, true, false = _counts(y, s)
    if rule == "youden":  # in whole numbers: equal rates must compare as equal
        return Threshold(name, float(candidates[np.argmax(true * negatives - false * positives)]))
    own, other = (true, -false) if rule == "sensitivity" else (-false, true)
    rate = true / positives if rule == "sensitivity" else 1 - false / negatives
    reached = np.flatnonzero(rate >= at_least - ROUNDING)
    if reached.size == 0:
        return Threshold(name, None, f"no threshold reaches a {rule} of {at_least:g}; the best has {rate.max():.4f}")
    return Threshold(name, float(candidates[max(reached, key=lambda i: (other[i], own[i]))]))


def operating_point(
    truth: npt.ArrayLike, score: npt.ArrayLike, threshold: Threshold, clusters: npt.ArrayLike | None = None, *,
    level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> OperatingPoint:  # fmt: skip
    """The rates of a threshold, chosen here or on other rows, with intervals over whole clusters `[N]`.

    sensitivity = TP/(TP+FN), specificity = TN/(TN+FP), ppv = TP/(TP+FP), npv = TN/(TN+FN). ValueError as in
    `binary_rows`.
    """
    y, s = binary_rows(truth, score)
    if threshold.value is None:
        missing = Estimate(None, level=level, reason=threshold.reason)
        return OperatingPoint(
            threshold, dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), missing), None, None
        )
    called = s >= threshold.value
    change = stability(y, s, threshold.value)
    return OperatingPoint(
        threshold,
        estimate_scores(rate_set(y, called), clusters, level=level, resamples=resamples, seed=seed),
        change,
        None if change is None else stability_grade(change),
    )


def rate_set(positive: Bools, called: Bools) -> ScoreSet:
    """sensitivity, specificity, ppv and npv of decisions `[N]` on truth `[N]`, as functions of row weights."""
    cells = np.stack([a & b for a in (positive, ~positive) for b in (called, ~called)], axis=1).astype(np.float64)
    no = {
        "sensitivity": (positive, "no row is positive"), "specificity": (~positive, "no row is negative"),
        "ppv": (called, "no row is called positive"), "npv": (~called, "no row is called negative"),
    }  # fmt: skip

    def values(w: Floats) -> dict[str, Floats]:
        tp, fn, fp, tn = (w @ cells).T
        rates = {"sensitivity": (tp, fn), "specificity": (tn, fp), "ppv": (tp, fp), "npv": (tn, fn)}
        return {name: ratio(right, right + wrong) for name, (right, wrong) in rates.items()}

    return ScoreSet(positive.size, values, {name: why for name, (rows, why) in no.items() if not rows.any()})


def stability(truth: npt.ArrayLike, score: npt.ArrayLike, threshold: float) -> float | None:
    """The largest change of sensitivity when the threshold moves by ±.01; None without positives."""
    y, s = binary_rows(truth, score)
    if not y.any():
        return None
    own = s[y]
    here, *moved = (float(np.mean(own >= threshold + d - ROUNDING)) for d in (0.0, -STABILITY_STEP, STABILITY_STEP))
    return max(abs(rate - here) for rate in moved)


def stability_grade(change: float) -> str:
    """A up to .02, B up to .05, C up to .10, otherwise D."""
    return next((grade for most, grade in GRADES if change <= most + ROUNDING), "D")


def binary_rows(truth: npt.ArrayLike, score: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Truth `[N]` as bool and scores `[N]`. ValueError for other shapes, no rows, truth beyond 0 and 1, NaN or inf."""
    y, s = np.asarray(truth), np.asarray(score, np.float64)
    if y.ndim != 1 or y.size == 0 or s.shape != y.shape:
        raise ValueError(f"truth and scores must both be [N], N > 0; found {y.shape} and {s.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"truth must be 0 or 1, found {y[~np.isin(y, (0, 1))][0]}")
    if not np.isfinite(s).all():
        raise ValueError(f"scores are not finite: {s[~np.isfinite(s)][0]} in row {np.flatnonzero(~np.isfinite(s))[0]}")
    return y.astype(np.bool_), s


def _counts(y: Bools, s: Floats) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct scores from the highest down, with the true and false positives of each as threshold."""
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    true, false = (np.cumsum(rows[order])[last].astype(np.int64) for rows in (y, ~y))
    return s[order][last], true, false
