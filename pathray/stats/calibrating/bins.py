"""How probabilities of an event agree with how often it happens: reliability bins and Brier's parts.

For more than two classes, give the likeliest class (`top_label` of pathray.stats.probability_scores) or one class
against the rest. Not here: the calibration error as a score (pathray.stats.probability_scores), slope and
intercept (pathray.stats.calibrating.line), changing probabilities (pathray.stats.calibrating.temperature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pathray.stats.operating_points import binary_rows
from pathray.stats.probability_scores import equal_width

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bins = Literal["width", "count"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Probabilities in (low, high] (the first bin also at low): their number, their mean and the share that happened;
    None in an empty bin."""

    low: float
    high: float
    n: int
    predicted: float | None
    observed: float | None


@dataclass(frozen=True)
class BrierParts:
    """brier = reliability − resolution + uncertainty + within_bins: Murphy (1973), and what bins add (Stephenson 2008).

    reliability = Σ n_b (p̄_b − ȳ_b)²/n, resolution = Σ n_b (ȳ_b − ȳ)²/n, uncertainty = ȳ(1 − ȳ), and within_bins the
    variance of p in its bin less twice its covariance with y; 0 where a bin has one probability.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def reliability_bins(
    happened: npt.ArrayLike, probability: npt.ArrayLike, *, bins: int = 15, by: Bins = "width"
) -> list[ReliabilityBin]:
    """The bins of events `[N]` (0 or 1) by probability `[N]`: of equal width, or of about equal count.

    Equal probabilities are never in two bins, so bins by count may be fewer and unequal. ValueError as in
    `events`, and for no bins.
    """
    y, p = events(happened, probability)
    place, edges = _binned(p, bins, by)
    n, predicted, observed = (np.bincount(place, x, edges.size - 1) for x in (np.ones_like(p), p, y))
    mean = [[float(t[b] / n[b]) if n[b] else None for b in range(n.size)] for t in (predicted, observed)]
    return [
        ReliabilityBin(float(edges[b]), float(edges[b + 1]), int(n[b]), *(m[b] for m in mean)) for b in range(n.size)
    ]


def brier_parts(
    happened: npt.ArrayLike, probability: npt.ArrayLike, *, bins: int = 15, by: Bins = "width"
) -> BrierParts:
    """The parts of the Brier score of events `[N]` and probabilities `[N]`; errors as in `reliability_bins`."""
    y, p = events(happened, probability)
    place = np.unique(_binned(p, bins, by)[0], return_inverse=True)[1]
    n = np.bincount(place)
    mean_p, mean_y = np.bincount(place, p) / n, np.bincount(place, y) / n
    off_p, off_y = p - mean_p[place], y - mean_y[place]
    return BrierParts(
        float(np.mean(np.square(p - y))),
        float(n @ np.square(mean_p - mean_y) / y.size),
        float(n @ np.square(mean_y - y.mean()) / y.size),
        float(y.mean() * (1 - y.mean())),
        float(np.mean(np.square(off_p) - 2 * off_p * off_y)),
    )


def events(happened: npt.ArrayLike, probability: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Outcomes and probabilities `[N]`. ValueError for what is no probability, and as in `binary_rows`."""
    y, p = binary_rows(happened, probability)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"probabilities must be in [0, 1], found {p[(p < 0) | (p > 1)][0]}")
    return y.astype(np.float64), p


def _binned(p: Floats, bins: int, by: Bins) -> tuple[Ints, Floats]:
    """Each row's bin `[N]` and the bins' edges `[B + 1]`."""
    if bins < 1:
        raise ValueError(f"at least one bin is required, found {bins}")
    if by == "width":
        return equal_width(p, bins), np.arange(bins + 1) / bins
    last = np.sort(p)[np.ceil(np.arange(1, bins + 1) * p.size / bins).astype(np.int64) - 1]
    above = np.unique(last)
    return np.searchsorted(above, p, side="left").astype(np.int64), np.append(p.min(), above)
