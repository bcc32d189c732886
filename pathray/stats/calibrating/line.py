"""The calibration line of probabilities: slope and intercept of the outcome on their logit, for many row weights.

Not here: reliability bins (.bins), probabilities that are changed (.temperature).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from pathray.stats.calibrating.bins import events
from pathray.stats.estimates import ScoreSet

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NEAREST = 1e-12  # probabilities come at most this close to 0 and 1 before their logit is taken
MOST_STEPS, CONVERGED = 60, 1e-12


def calibration_line(happened: npt.ArrayLike, probability: npt.ArrayLike) -> ScoreSet:
    """slope, intercept and in_the_large of events `[N]` and probabilities `[N]`, as functions of row weights.

    slope b and intercept a: the logistic regression logit P(y = 1) = a + b·logit(p) (Cox 1958); ideal are 1 and 0. A
    slope below 1 is overconfident. in_the_large: the intercept with the slope held at 1. Undefined where one outcome is
    missing, where all probabilities are equal, or where a threshold separates the outcomes (the slope is then
    infinite). Errors: `events`.
    """
    y, p = events(happened, probability)
    x = logit(np.clip(p, NEAREST, 1 - NEAREST))
    reasons = {}
    if y.min() == y.max():
        reasons = dict.fromkeys(("slope", "intercept", "in_the_large"), f"the outcome is {y[0]:g} in all rows")
    elif _separated(y, x, np.ones((1, y.size)))[0]:
        reasons = dict.fromkeys(("slope", "intercept"), "probabilities are equal, or separate the outcomes")

    def values(w: Floats) -> dict[str, Floats]:
        a, b = _logistic(y, x, w)
        return {"slope": b, "intercept": a, "in_the_large": _shift(y, x, w)}

    return ScoreSet(y.size, values, reasons)


def _separated(y: Floats, x: Floats, w: Floats) -> Bools:
    """`[R]`: an outcome is missing, or no x of one is beyond one of the other, so no slope is finite."""
    order = np.argsort(x, kind="stable")
    x, y, present = x[order], y[order], w[:, order] > 0
    low, high = [], []
    for outcome in (0.0, 1.0):
        here = present & (y == outcome)
        low.append(np.where(here.any(axis=1), x[here.argmax(axis=1)], np.inf))
        high.append(np.where(here.any(axis=1), x[x.size - 1 - here[:, ::-1].argmax(axis=1)], -np.inf))
    apart: Bools = (high[0] <= low[1]) | (high[1] <= low[0])
    return apart


def _logistic(y: Floats, x: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Intercept and slope `[R]` by Newton's method with halved steps where the likelihood falls; NaN if separated."""
    a, b = np.full(len(w), np.nan), np.full(len(w), np.nan)
    rows = np.flatnonzero(~_separated(y, x, w))
    coefficient, w = np.zeros((rows.size, 2)), w[rows]
    at = _log_likelihood(y, x, w, coefficient)
    for _ in range(MOST_STEPS):
        mu = expit(coefficient[:, :1] + coefficient[:, 1:] * x)
        gradient = np.stack([(w * (y - mu)).sum(axis=1), (w * (y - mu)) @ x], axis=1)
        v = w * mu * (1 - mu)
        h0, h1, h2 = v.sum(axis=1), v @ x, v @ np.square(x)
        step = np.linalg.solve(np.stack([np.stack([h0, h1], 1), np.stack([h1, h2], 1)], 1), gradient[..., None])[..., 0]
        while True:
            reached = _log_likelihood(y, x, w, coefficient + step)
            worse = reached < at - 1e-9 * np.abs(at)
            if not worse.any():
                break
            step[worse] /= 2
        coefficient, at = coefficient + step, reached
        if (np.abs(step) <= CONVERGED * (1 + np.abs(coefficient))).all():
            break
    a[rows], b[rows] = coefficient.T
    return a, b


def _log_likelihood(y: Floats, x: Floats, w: Floats, coefficient: Floats) -> Floats:
    eta = coefficient[:, :1] + coefficient[:, 1:] * x
    total: Floats = (w * (y * eta - np.logaddexp(0, eta))).sum(axis=1)
    return total


def _shift(y: Floats, x: Floats, w: Floats) -> Floats:
    """`[R]`: a with Σ w (y − expit(a + x)) = 0, by bisection; NaN where an outcome is missing."""
    happened, total = w @ y, w.sum(axis=1)
    low, high = np.full(len(w), -x.max() - 40.0), np.full(len(w), -x.min() + 40.0)
    for _ in range(MOST_STEPS):
        middle = (low + high) / 2
        below = (w * expit(middle[:, None] + x)).sum(axis=1) < happened
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where((happened > 0) & (happened < total), (low + high) / 2, np.nan)
