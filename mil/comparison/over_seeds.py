"""The difference of two methods, of which each trained model is one draw: patients and seeds are both random.

This is the analysis of many readers and many cases with the seed as the reader (Obuchowski & Rockette 1995), readers
nested in methods. With seeds' scores s `[S]` of methods a and b, and covariances of resampled patients,

    V = MS_a/S_a + MS_b/S_b + max(0, Cov_aa + Cov_bb − 2 Cov_ab)
    t = (mean s_a − mean s_b)/√V,    df = V² / Σ (MS_i/S_i)²/(S_i − 1)    (Hillis 2007)

MS is the variance of the seeds' scores, Cov_aa the mean covariance of two seeds of a, Cov_ab that of a seed of each. A
bootstrap that draws seeds and patients counts what is of a seed on a patient twice, and of two seeds it finds a
difference far too often. Not here: intervals of these seeds alone (mil.comparison.resampling).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from mil.comparison.resampling import Resampled, estimate_difference
from pathray.stats.estimates import Estimate

Floats = npt.NDArray[np.float64]
SMALLEST_VARIANCE, MOST_DF = 1e-20, 1e9


def estimate_over_seeds(a: Resampled, b: Resampled, score: str, level: float) -> tuple[Estimate, float | None]:
    """a − b with its interval and two-sided p-value over patients and seeds; both need two seeds or more. Without an
    interval p is None, and the estimate has the reason."""
    fixed, _ = estimate_difference(a, b, score, level)
    if fixed.value is None:
        return fixed, None
    both = np.concatenate([a.drawn[score], b.drawn[score]], axis=1)
    if fixed.reason and not (len(both) > 1 and np.isfinite(both).all()):
        return fixed, None
    seeds = [one.whole[score] for one in (a, b)]
    parts = [float(s.var(ddof=1)) / s.size for s in seeds]
    variance = sum(parts) + shared_variance(both[np.isfinite(both).all(axis=1)], seeds[0].size)
    if variance <= SMALLEST_VARIANCE:
        reason = "no interval: neither seeds nor resamples differ"
        return Estimate(fixed.value, level=level, clusters=a.clusters, reason=reason), None
    spread = sum(part**2 / (s.size - 1) for part, s in zip(parts, seeds, strict=True))
    df = min(variance**2 / spread, MOST_DF) if spread > 0 else MOST_DF
    half = float(stdtrit(df, 0.5 + level / 2)) * variance**0.5
    p = float(2 * stdtr(df, -abs(fixed.value) / variance**0.5))
    undefined = fixed.undefined_resamples
    return Estimate(fixed.value, fixed.value - half, fixed.value + half, level, a.clusters, undefined), p


def shared_variance(drawn: Floats, count: int) -> float:
    """max(0, Cov_aa + Cov_bb − 2 Cov_ab) of scores on resamples `[R, S]`, of which the first `count` are a's."""
    covariance = np.cov(drawn.T)
    of_a, of_b, across = covariance[:count, :count], covariance[count:, count:], covariance[:count, count:]
    own = sum(float((c.sum() - np.trace(c)) / (len(c) * (len(c) - 1))) for c in (of_a, of_b))
    return max(0.0, own - 2 * float(across.mean()))
