"""Two mean AUROCs over seeds on the same rows, by DeLong's covariance. With one seed each it is DeLong's test.

Not here: the covariance (pathray.stats.comparing.delong).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from pathray.stats.bootstrap import cluster_codes
from pathray.stats.comparing.delong import SMALLEST_VARIANCE, AurocTest, auroc_covariance, delong_test
from pathray.stats.estimates import Estimate

Floats = npt.NDArray[np.float64]


def delong_of_seeds(
    truth: npt.ArrayLike, a: Floats, b: Floats, clusters: npt.ArrayLike, *, level: float = 0.95
) -> AurocTest:
    """Whether the mean AUROCs of seeds a `[S, N]` and b `[T, N]` are equal, for truth `[N]` (0 or 1).

    The variance of c·A, A the AUROCs of all seeds and c their contrast (1/S … −1/T …), is

        cᵀ Σ c + σ²_a/S + σ²_b/T

    Σ is the covariance over rows, or over clusters `[N]` (Obuchowski 1997). σ² is the variance of a seed's AUROC over
    seeds beyond what the rows explain: the sample variance less the mean of Σ's diagonal and plus that of its other
    entries, at least 0.
    """
    if len(a) == len(b) == 1:
        return delong_test(truth, a[0], b[0], clusters, level=level)
    count = int(cluster_codes(clusters, a.shape[1]).max()) + 1
    aurocs, covariance = auroc_covariance(truth, np.concatenate([a, b]), clusters)
    contrasts = np.zeros((3, len(aurocs)))
    contrasts[0, : len(a)], contrasts[1, len(a) :] = 1 / len(a), 1 / len(b)
    contrasts[2] = contrasts[0] - contrasts[1]
    own = [_beyond(aurocs[rows], covariance[rows, rows]) for rows in (slice(0, len(a)), slice(len(a), None))]
    values = contrasts @ aurocs
    variances = np.einsum("is,st,it->i", contrasts, covariance, contrasts) + np.array([*own, sum(own)])
    why = None if np.isfinite(variances).all() else "a class, or a second patient of it, is missing"
    first, second, difference = (
        _estimate(value, variance, low, level, count, why)
        for value, variance, low in zip(values, variances, (0, 0, -1), strict=True)
    )
    why = difference.reason
    z = None if why else float(values[2] / math.sqrt(variances[2]))
    return AurocTest(first, second, difference, z, None if z is None else float(2 * ndtr(-abs(z))), why)


def _beyond(aurocs: Floats, covariance: Floats) -> float:
    """σ²/S of S seeds; 0 for one, whose spread is unknown."""
    size = len(aurocs)
    if size < 2:
        return 0.0
    shared = (covariance.sum() - np.trace(covariance)) / (size * (size - 1))
    return max(0.0, float(aurocs.var(ddof=1) - np.trace(covariance) / size + shared)) / size


def _estimate(value: float, variance: float, lowest: float, level: float, clusters: int, why: str | None) -> Estimate:
    if why is None and variance <= SMALLEST_VARIANCE:
        why = "all seeds place all rows alike"
    if why is not None:
        known = float(value) if math.isfinite(value) else None
        return Estimate(known, level=level, clusters=clusters, reason=why)
    half = float(ndtri(0.5 + level / 2)) * math.sqrt(variance)
    return Estimate(float(value), max(float(value) - half, lowest), min(float(value) + half, 1.0), level, clusters)
