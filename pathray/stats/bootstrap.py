"""Confidence intervals over seeds, rows, or clusters of rows (such as patients), by t or by resampling. No torch.

Not here: the metrics, significance tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval at `level`, from `n` independent units (seeds, rows, clusters)."""

    estimate: float
    low: float
    high: float
    level: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.estimate:+.4f} [{self.low:+.4f}, {self.high:+.4f}] ({self.level:.0%}, n = {self.n})"


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    method: Literal["t", "percentile"] = "t",
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a − b over units measured twice (`[N]` each: the same seeds, slides, patients …), with an interval.

    ``t``: mean ± t_{n−1}·s/√n, for a few seeds. ``percentile``: Efron's bootstrap, for many units. With `clusters`
    `[N]` the unit is the cluster: ``percentile`` resamples whole clusters with equally weighted rows; ``t`` uses the
    cluster means as its n values. ValueError for unequal lengths, non-finite values, or fewer than two units.
    """
    difference = _finite(a, "a") - _finite(b, "b")
    groups = cluster_codes(clusters, difference.size)
    count = int(groups.max(initial=-1)) + 1
    if count < 2:
        raise ValueError(f"an interval needs at least two units, found {count}")
    if method == "t":
        sizes = np.bincount(groups, minlength=count)
        return t_interval(np.bincount(groups, weights=difference, minlength=count) / sizes, level=level)
    sums, sizes = np.bincount(groups, weights=difference), np.bincount(groups)
    drawn = np.concatenate([(w @ sums) / (w @ sizes) for w in cluster_counts(count, resamples, seed)])
    low, high = percentile_interval(drawn, level)
    return Interval(float(difference.mean()), low, high, level, count)


def t_interval(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of `values` `[N]` ± t_{N−1}·s/√N. ValueError for fewer than two values or a non-finite one."""
    x = _finite(values, "values")
    if x.size < 2:
        raise ValueError(f"an interval needs at least two values, found {x.size}")
    from scipy.special import stdtrit

    half = float(stdtrit(x.size - 1, 0.5 + level / 2)) * float(x.std(ddof=1)) / x.size**0.5
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, level, int(x.size))


def percentile_interval(drawn: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The central `level` interval of resampled values; NaN draws (metric undefined in a resample) are ignored."""
    values = np.asarray(drawn, np.float64)
    low, high = np.nanquantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def cluster_counts(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of `count` units occurs in each resample, in blocks `[r, count]` of bounded size; rows sum to
    count.

    A metric weighted by these counts is the metric on the resample; expand by cluster (``counts[:, codes]``) to weight
    rows. Equal seeds give equal resamples for any statistic, so two models are compared on the same resamples.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    block = max(1, BLOCK_BYTES // (8 * count))
    share = np.full(count, 1.0 / count)
    for start in range(0, resamples, block):
        yield generator.multinomial(count, share, size=min(block, resamples - start)).astype(np.float64)


def cluster_codes(clusters: npt.ArrayLike | None, n: int) -> Ints:
    """The cluster number 0…C−1 of each row; without `clusters`, every row is its own cluster."""
    if clusters is None:
        return np.arange(n, dtype=np.int64)
    labels: npt.NDArray[Any] = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"clusters have shape {labels.shape}, the values ({n},)")
    codes: Ints = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return codes


def _finite(values: npt.ArrayLike, name: str) -> Floats:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"{name} must be one row of finite numbers, found shape {x.shape}")
    return x
