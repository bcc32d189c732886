"""A difference of any score of two models on the same rows, by a bootstrap of whole clusters. No torch.

Not here: tests of AUROC and accuracy without resampling (.delong, .mcnemar).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_codes
from pathray.stats.estimates import Estimate, ScoreSet, estimate_of
from pathray.stats.weights import row_weights

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A score of a and of b, the difference a − b with its interval and its two-sided p-value."""

    a: Estimate
    b: Estimate
    difference: Estimate
    p_value: float | None


def compare_scores(
    a: ScoreSet, b: ScoreSet, clusters: npt.ArrayLike | None = None, *, level: float = 0.95, resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Comparison]:  # fmt: skip
    """Each score that both sets have, compared on the same resamples of whole clusters `[N]` (without: of rows).

    p = 2·min(#{d* ≤ 0} + 1, #{d* ≥ 0} + 1)/(R + 1), at most 1, over the R resamples that define the difference d*: the
    smallest level whose percentile interval excludes 0 (Davison & Hinkley 1997). ValueError for sets of unequal rows.
    """
    if a.n != b.n:
        raise ValueError(f"two models are compared on the same rows, found {a.n} and {b.n}")
    codes = cluster_codes(clusters, a.n)
    count = int(codes.max(initial=-1)) + 1
    whole = _both(a, b, np.ones((1, a.n)))
    drawn = {name: [np.empty((0, 2))] for name in whole}
    if count > 1:
        for w in row_weights(codes, count, resamples=resamples, seed=seed):
            for name, values in _both(a, b, w).items():
                drawn[name].append(values)
    return {
        name: _comparison(value[0], np.concatenate(drawn[name]), a.reasons.get(name), b.reasons.get(name), level, count)
        for name, value in whole.items()
    }


def _both(a: ScoreSet, b: ScoreSet, w: Floats) -> dict[str, Floats]:
    """Each shared score of both `[R, 2]`."""
    one, other = a.values(w), b.values(w)
    return {name: np.stack([values, other[name]], axis=1) for name, values in one.items() if name in other}


def _comparison(
    value: Floats, drawn: Floats, why_a: str | None, why_b: str | None, level: float, count: int
) -> Comparison:  # fmt: skip
    one, other, difference = (
        estimate_of(float(x), d, level=level, clusters=count, reason=why)
        for x, d, why in (
            (value[0], drawn[:, 0], why_a),
            (value[1], drawn[:, 1], why_b),
            (value[0] - value[1], drawn[:, 0] - drawn[:, 1], why_a or why_b),
        )
    )
    return Comparison(one, other, difference, None if difference.reason else _p_value(drawn[:, 0] - drawn[:, 1]))


def _p_value(difference: Floats) -> float:
    known = difference[np.isfinite(difference)]
    below, above = int((known <= 0).sum()), int((known >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (known.size + 1))
