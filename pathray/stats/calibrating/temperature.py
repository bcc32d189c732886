"""Temperature scaling: one number, fitted on validation rows, that makes probabilities less or more sure.

Not here: how well probabilities are calibrated (pathray.stats.calibrating.bins).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SMALLEST = 1e-30  # a probability below it is taken for it: float32 rounds to 0 what has a logarithm
COLDEST, HOTTEST = 1e-3, 1e3


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature and the log-loss of its rows before and after; None with the `reason` if there is none."""

    value: float | None
    log_loss_before: float
    log_loss_after: float | None
    reason: str | None = None


def fit_temperature(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> Temperature:
    """The T of least log-loss of softmax(log p / T), for classes `[N]` (0 … K−1) and probabilities `[N, K]`.

    Guo et al. (2017): with logits z, softmax(z / T); log p differs from z by a number per row, which softmax drops. The
    loss is convex in 1/T, so its minimum is where the mean of E[log p] − log p_y is 0. There is none where every row is
    right (the colder, the better) or where classes are no better than chance. ValueError for shapes that do not fit.
    """
    y, p = np.asarray(truth, np.int64), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or y.shape != p.shape[:1] or y.size == 0 or not ((y >= 0) & (y < p.shape[1])).all():
        raise ValueError(f"truth must be [N] in 0 … K-1 and probabilities [N, K], found {y.shape} and {p.shape}")
    z = _logits(p)
    rows, before = np.arange(y.size), _log_loss(y, z, 1.0)

    def slope(inverse: float) -> float:
        return float(np.mean((softmax(z * inverse, axis=1) * z).sum(axis=1) - z[rows, y]))

    if slope(1 / HOTTEST) >= 0:
        return Temperature(None, before, None, "the probabilities are no better than chance: no finite temperature")
    if slope(1 / COLDEST) <= 0:
        return Temperature(None, before, None, "all rows are right, or nearly so: the best temperature is 0")
    inverse = float(brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-14, rtol=1e-14))
    return Temperature(1 / inverse, before, _log_loss(y, z, inverse))


def apply_temperature(probabilities: npt.ArrayLike, temperature: float) -> Floats:
    """softmax(log p / T) of probabilities `[N, K]`; the order of classes stays. ValueError for T ≤ 0."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be positive, found {temperature}")
    scaled: Floats = softmax(_logits(np.asarray(probabilities, np.float64)) / temperature, axis=1)
    return scaled


def _logits(p: Floats) -> Floats:
    return np.log(np.maximum(p, SMALLEST))


def _log_loss(y: Ints, z: Floats, inverse: float) -> float:
    return float(-np.mean(log_softmax(z * inverse, axis=1)[np.arange(y.size), y]))
