"""AUROC with its variance, and two of them on the same rows, by DeLong; with clusters, by Obuchowski. No torch.

Not here: resampling (pathray.stats.comparing.scores), AUROC of resamples (pathray.stats.ranking).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from pathray.stats.bootstrap import cluster_codes
from pathray.stats.correlation import ranks
from pathray.stats.estimates import Estimate
from pathray.stats.operating_points import binary_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SMALLEST_VARIANCE = 1e-20  # below it a variance is rounding


@dataclass(frozen=True)
class AurocTest:
    """Two AUROCs on the same rows, their difference a − b, z = difference/√variance and its two-sided p-value."""

    a: Estimate
    b: Estimate
    difference: Estimate
    z: float | None
    p_value: float | None
    reason: str | None = None


def delong(
    truth: npt.ArrayLike, score: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *, level: float = 0.95
) -> Estimate:
    """AUROC of truth `[N]` (0 or 1) and scores `[N]`, with its normal interval within [0, 1].

    `auroc_covariance` gives the variance. ValueError as in `binary_rows`.
    """
    rows = _Rows.of(truth, [score], clusters, level)
    return rows.auroc(0)


def delong_test(
    truth: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *,
    level: float = 0.95,
) -> AurocTest:  # fmt: skip
    """Whether scores a and b `[N]` of the same rows have the same AUROC; rows of a cluster `[N]` may be dependent.

    Without an answer (a class is missing, a cluster alone, two models that rank all rows alike) p is None and `reason`
    says why. ValueError as in `binary_rows`.
    """
    rows = _Rows.of(truth, [a, b], clusters, level)
    variance = float(rows.covariance[0, 0] + rows.covariance[1, 1] - 2 * rows.covariance[0, 1])
    value = float(rows.aurocs[0] - rows.aurocs[1])
    why = rows.reason or ("both models place all rows alike" if variance <= SMALLEST_VARIANCE else None)
    z = None if why else value / math.sqrt(variance)
    p = None if z is None else float(2 * ndtr(-abs(z)))
    return AurocTest(rows.auroc(0), rows.auroc(1), rows.estimate(value, variance, -1, why), z, p, why)


def auroc_covariance(
    truth: npt.ArrayLike, scores: Floats, clusters: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """AUROCs `[S]` of S sets of scores `[S, N]` of the same rows, and their covariance `[S, S]`.

    Without clusters DeLong, DeLong & Clarke-Pearson (1988) by midranks (Sun & Xu 2014): with m members and n others,
    the placement of member i is V10_i = (R_i − R'_i)/n, R its rank among all and R' among members, that of other j is
    V01_j = 1 − (R_j − R'_j)/m, and the covariance is S10/m + S01/n, of the placements' sample covariances.
    With clusters Obuchowski (1997): sums of placements less their expectation per cluster, U10_c and U01_c, give

        I10/(I10−1) Σ U10²/m² + I01/(I01−1) Σ U01²/n² + 2 I/(I−1) Σ U10 U01/(m n)

    for I clusters, I10 of them with members and I01 with others. With a row per cluster this is DeLong's. NaN where a
    class or a second cluster of it is missing.
    """
    y = np.asarray(truth).astype(np.bool_)
    m, n = int(y.sum()), int((~y).sum())
    if m == 0 or n == 0:
        return np.full(len(scores), np.nan), np.full((len(scores),) * 2, np.nan)
    whole, own, other = ranks(scores), ranks(scores[:, y]), ranks(scores[:, ~y])
    v10, v01 = (whole[:, y] - own) / n, 1 - (whole[:, ~y] - other) / m
    auroc = v10.mean(axis=1)
    codes = cluster_codes(clusters, y.size)
    count = int(codes.max()) + 1
    u10, u01 = (_sums(v - auroc[:, None], codes[rows], count) for v, rows in ((v10, y), (v01, ~y)))
    i10, i01 = (np.unique(codes[rows]).size for rows in (y, ~y))
    if i10 < 2 or i01 < 2:
        return auroc, np.full((len(scores),) * 2, np.nan)
    crossed = u10 @ u01.T
    covariance = i10 / (i10 - 1) * (u10 @ u10.T) / m**2 + i01 / (i01 - 1) * (u01 @ u01.T) / n**2
    covariance += count / (count - 1) * (crossed + crossed.T) / (m * n)
    return auroc, covariance


def _sums(values: Floats, codes: Ints, count: int) -> Floats:
    """The sum `[S, C]` of values `[S, P]` in each cluster `[P]`."""
    return np.stack([np.bincount(codes, row, count) for row in values])


@dataclass(frozen=True)
class _Rows:
    """AUROCs `[S]` of the same rows with their covariance `[S, S]`, and why there is none."""

    aurocs: Floats
    covariance: Floats
    clusters: int
    level: float
    reason: str | None

    @classmethod
    def of(
        cls, truth: npt.ArrayLike, scores: list[npt.ArrayLike], clusters: npt.ArrayLike | None, level: float
    ) -> _Rows:
        pairs = [binary_rows(truth, score) for score in scores]
        y = pairs[0][0]
        count = int(cluster_codes(clusters, y.size).max()) + 1
        aurocs, covariance = auroc_covariance(y, np.stack([s for _, s in pairs]), clusters)
        reason = None
        if y.all() or not y.any():
            reason = f"all rows are {'positive' if y.all() else 'negative'}"
        elif not np.isfinite(covariance).all():
            reason = "a variance needs at least two clusters with rows of each class"
        return cls(aurocs, covariance, count, level, reason)

    def auroc(self, i: int) -> Estimate:
        variance = float(self.covariance[i, i])
        none = variance <= SMALLEST_VARIANCE
        return self.estimate(
            float(self.aurocs[i]),
            variance,
            0,
            self.reason or ("all placements are equal, so no variance" if none else None),
        )

    def estimate(self, value: float, variance: float, lowest: float, reason: str | None) -> Estimate:
        """The value and its normal interval within lowest … 1."""
        if reason:
            known = value if math.isfinite(value) else None
            return Estimate(known, level=self.level, clusters=self.clusters, reason=reason)
        half = float(ndtri(0.5 + self.level / 2)) * math.sqrt(variance)
        return Estimate(value, max(value - half, lowest), min(value + half, 1.0), self.level, self.clusters)
