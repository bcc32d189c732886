"""Whether two models are right equally often on the same rows: McNemar's test, and its version for clusters. No torch.

Not here: other scores of two models (.scores), many tests at once (.multiplicity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, chdtrc

from pathray.stats.bootstrap import cluster_codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
EXACT_BELOW = 25  # discordant pairs


@dataclass(frozen=True)
class McNemar:
    """Rows that only a, or only b, has right; the test's name, its statistic (None if exact) and two-sided p-value."""

    only_a: int
    only_b: int
    method: str
    statistic: float | None
    p_value: float


def mcnemar(a_right: npt.ArrayLike, b_right: npt.ArrayLike) -> McNemar:
    """McNemar's test (1947) of whether a and b are right `[N]` (bool) equally often, for independent rows.

    Under 25 discordant pairs the exact binomial test, 2·P(X ≤ min(only_a, only_b)), X ~ B(only_a + only_b, ½), at most
    1. Otherwise χ²₁ = (|only_a − only_b| − 1)²/(only_a + only_b), with Edwards' continuity correction (1948), which
    does not go below 0. ValueError for unequal shapes.
    """
    a, b = _right(a_right, b_right)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n = only_a + only_b
    if n < EXACT_BELOW:
        p = min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0
        return McNemar(only_a, only_b, "exact binomial", None, p)
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / n
    return McNemar(only_a, only_b, "chi-squared with continuity correction", statistic, float(chdtrc(1, statistic)))


def clustered_mcnemar(a_right: npt.ArrayLike, b_right: npt.ArrayLike, clusters: npt.ArrayLike) -> McNemar:
    """The same question where rows of a cluster `[N]` (slides of a patient) depend on each other.

    With d_c = only_a − only_b of cluster c, the statistic is χ² = (Σ d_c)²/Σ d_c², Obuchowski's (1998) with the
    variance under the null hypothesis (Yang, Sun & Hardin 2010). It is about the difference of accuracies over rows;
    Durkalski's (2003) weights clusters equally, whatever their size. Its p-value is exact: models that do not differ
    may be swapped within any cluster, so each d_c has either sign with probability ½, while Σ d_c² stays. The
    distribution of Σ ± d_c is computed by convolution, so few patients need no approximation. With a row per cluster
    it is McNemar's exact test. ValueError for unequal shapes.
    """
    a, b = _right(a_right, b_right)
    codes = cluster_codes(clusters, a.size)
    difference = np.rint(np.bincount(codes, a.astype(np.float64) - b)).astype(np.int64)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    squares, total = int(np.square(difference).sum()), int(difference.sum())
    statistic = total**2 / squares if squares else 0.0
    p = _sign_flips(np.abs(difference[difference != 0]), abs(total))
    return McNemar(only_a, only_b, "exact over clusters", statistic, p)


def _sign_flips(sizes: Ints, total: int) -> float:
    """P(|Σ ± size| ≥ total), every sign ± with probability ½.

    Σ ± size = 2·T − Σ size, where T adds each size with probability ½.
    """
    most = int(sizes.sum())
    chance = np.zeros(most + 1)
    chance[0], reached = 1.0, 0
    for size in np.sort(sizes):
        chance[: reached + size + 1] = (
            np.append(chance[: reached + 1], np.zeros(size)) + np.append(np.zeros(size), chance[: reached + 1])
        ) / 2
        reached += int(size)
    far = np.abs(2 * np.arange(most + 1) - most) >= total
    return min(1.0, float(chance[far].sum()))


def _right(a_right: npt.ArrayLike, b_right: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    a, b = np.asarray(a_right, np.bool_), np.asarray(b_right, np.bool_)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"both must be [N], found {a.shape} and {b.shape}")
    return a, b
