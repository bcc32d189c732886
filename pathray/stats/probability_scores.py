"""Scores of how right probabilities are, as functions of row weights: log-loss, Brier, calibration error. No torch.

Not here: reliability bins and the calibration line (pathray.stats.calibrating.bins), scores of ranks or of decisions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Score = Callable[[Floats], Floats]
SMALLEST = float(np.finfo(np.float64).eps)  # a probability of 0 for what happened costs −log of this, not infinity
ECE_BINS = 15


def probability_scores(truth: Ints, probabilities: Floats) -> dict[str, Score]:
    """log_loss, brier and ece of classes 0 … K−1 `[N]` and probabilities `[N, K]`.

    log_loss = mean of −log p_y, with p at least `SMALLEST` as in scikit-learn. brier = mean of Σ_k (p_k − [y = k])²
    (Brier 1950); for two classes (p_1 − y)², its half, as in scikit-learn. ece: `calibration_error` of the most likely
    class (Guo et al. 2017).
    """
    rows = np.arange(truth.size)
    loss = -np.log(np.clip(probabilities[rows, truth], SMALLEST, 1 - SMALLEST))
    member = truth[:, None] == np.arange(probabilities.shape[1])
    brier = np.square(probabilities - member).sum(axis=1) / (2 if probabilities.shape[1] == 2 else 1)
    confidence, right = top_label(truth, probabilities)
    return {
        "log_loss": lambda w: ratio(w @ loss, w.sum(axis=1)),
        "brier": lambda w: ratio(w @ brier, w.sum(axis=1)),
        "ece": lambda w: calibration_error(right, confidence, w),
    }


def top_label(truth: Ints, probabilities: Floats) -> tuple[Floats, Floats]:
    """The probability of the most likely class of each row `[N]`, and whether it is the true one (0 or 1) `[N]`."""
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == truth).astype(np.float64)


def calibration_error(happened: Floats, probability: Floats, w: Floats, *, bins: int = ECE_BINS) -> Floats:
    """`[R]`: ECE = Σ_b (w_b/w) |mean of happened − mean of probability| over bins of equal width (both `[N]`).

    Bin b holds probabilities in (b/B, (b + 1)/B], the first one also 0.
    """
    place = equal_width(probability, bins)
    used, place = np.unique(place, return_inverse=True)
    member = (place[:, None] == np.arange(used.size)).astype(np.float64)
    return ratio(np.abs(w @ (member * (happened - probability)[:, None])).sum(axis=1), w.sum(axis=1))


def equal_width(probability: Floats, bins: int) -> Ints:
    """The bin 0 … bins − 1 of each probability, closed above."""
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, probability, side="left").astype(np.int64)
