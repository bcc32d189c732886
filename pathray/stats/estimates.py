"""Values with an interval, or with the reason why there is none; their strict JSON; many scores on shared resamples.

Not here: the scores (pathray.stats.classification and its neighbours), the draws (pathray.stats.bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_codes, percentile_interval
from pathray.stats.weights import row_weights

Floats = npt.NDArray[np.float64]
Json = dict[str, float | int | str | None]
MOST_UNDEFINED = 0.1  # with more of the resamples undefined, those that are left are no sample of what could have been


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided interval at `level` from `clusters` independent units; `reason` where one is missing.

    `undefined_resamples` were left out of the interval, such as those that lack a class.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    clusters: int = 0
    undefined_resamples: int = 0
    reason: str | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        assert all(x is None or math.isfinite(x) for x in numbers), numbers
        assert self.reason is not None or None not in numbers, "what is missing has a reason"

    def as_json(self) -> Json:
        """Its fields, none of them NaN or infinite."""
        return asdict(self)


@dataclass(frozen=True)
class ScoreSet:
    """Scores of the same `n` rows: weights `[R, N]` → each score `[R]` by name, NaN where it is not defined.

    `reasons` says of each score that is undefined on all rows why that is so.
    """

    n: int
    values: Callable[[Floats], Mapping[str, Floats]]
    reasons: Mapping[str, str] = field(default_factory=dict)


def estimate_scores(
    scores: ScoreSet, clusters: npt.ArrayLike | None = None, *, level: float = 0.95, resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """Each score on all rows, with the percentile interval over whole clusters `[N]` (without: over rows).

    All scores share the same resamples. An interval is missing for fewer than two clusters, where more than
    `MOST_UNDEFINED` of the resamples do not define the score, and where all of them give the same (a perfect score).
    ValueError for clusters of another length.
    """
    codes = cluster_codes(clusters, scores.n)
    count = int(codes.max(initial=-1)) + 1
    whole = {name: float(v[0]) for name, v in scores.values(np.ones((1, scores.n))).items()}
    drawn: dict[str, list[Floats]] = {name: [np.empty(0)] for name in whole}
    if count > 1:
        for w in row_weights(codes, count, resamples=resamples, seed=seed):
            for name, values in scores.values(w).items():
                drawn[name].append(values)
    return {
        name: estimate_of(
            value, np.concatenate(drawn[name]), level=level, clusters=count, reason=scores.reasons.get(name)
        )
        for name, value in whole.items()
    }


def estimate_of(
    value: float, drawn: Floats, *, level: float, clusters: int, reason: str | None = None
) -> Estimate:  # fmt: skip
    """A value and its percentile interval from what resamples of so many clusters gave `[R]`; `reason` if it is NaN."""
    if not math.isfinite(value):
        return Estimate(None, level=level, clusters=clusters, reason=reason or "it is not defined on these rows")
    if clusters < 2:
        reason = f"an interval needs at least two clusters, found {clusters}"
        return Estimate(value, level=level, clusters=clusters, reason=reason)
    undefined = int((~np.isfinite(drawn)).sum())
    if drawn.size == 0 or undefined > MOST_UNDEFINED * drawn.size:
        reason = f"no interval: {undefined} of {drawn.size} resamples do not define it (a class or an event is rare)"
        return Estimate(value, None, None, level, clusters, undefined, reason)
    if np.nanmin(drawn) == np.nanmax(drawn):
        reason = "no interval: all resamples give the same value, so they do not show its error"
        return Estimate(value, None, None, level, clusters, undefined, reason)
    return Estimate(value, *percentile_interval(drawn, level), level, clusters, undefined)
