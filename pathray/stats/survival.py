"""Concordance of risks with censored times (Harrell's C) as a function of row weights, with its interval. No torch.

Not here: survival curves and the log-rank test (pathray.stats.kaplan_meier), losses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pathray.stats.estimates import Estimate, ScoreSet, estimate_scores
from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
PAIR_BYTES = 16 << 20


def concordance(
    time: npt.ArrayLike, event: npt.ArrayLike, risk: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *,
    strata: npt.ArrayLike | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Harrell's C of risks `[N]` with its percentile interval over whole clusters `[N]`; see `concordance_set`."""
    scores = concordance_set(time, event, risk, strata)
    return estimate_scores(scores, clusters, level=level, resamples=resamples, seed=seed)["c_index"]


def concordance_set(
    time: npt.ArrayLike, event: npt.ArrayLike, risk: npt.ArrayLike, strata: npt.ArrayLike | None = None
) -> ScoreSet:
    """c_index of times, events (0 or 1) and risks `[N]`: the chance that who has the event earlier has the higher risk.

    C = Σ w_i w_j ([r_i > r_j] + ½ [r_i = r_j]) / Σ w_i w_j over the comparable pairs: i has an event, and j is known to
    outlive it (t_j > t_i, or t_j = t_i and j is censored). Two events at one time are not comparable (Harrell 1982; as
    lifelines and scikit-survival). C(−risk) = 1 − C: a C below ½ is never turned round. With `strata` `[N]`, only pairs
    within a stratum count: the log-risks of two models have no common zero. Undefined without a comparable pair.
    ValueError as in `survival_rows`, and for a risk that is NaN or infinite.
    """
    t, happened = survival_rows(time, event)
    r = np.asarray(risk, np.float64)
    if r.shape != t.shape or not np.isfinite(r).all():
        raise ValueError(f"risks must be {t.shape} finite numbers, found shape {r.shape}")
    codes = np.zeros(t.size, np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    parts = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    pairs = [_Pairs(t[rows], happened[rows], r[rows], rows) for rows in parts]

    def c_index(w: Floats) -> Floats:
        won, all_pairs = (sum(parts) for parts in zip(*(one.count(w) for one in pairs), strict=True))
        return ratio(np.asarray(won), np.asarray(all_pairs))

    reasons = {}
    if not happened.any():
        reasons["c_index"] = "no row has an event"
    elif not any(one.any for one in pairs):
        where = " within a stratum, such as a fold" if len(parts) > 1 else ""
        reasons["c_index"] = f"no pair can be compared{where}: nobody outlives the first event"
    return ScoreSet(t.size, lambda w: {"c_index": c_index(w)}, reasons)


class _Pairs:
    """The comparable pairs among `rows` `[n]` of the whole, whose times, events and risks are given `[n]`."""

    def __init__(self, t: Floats, happened: Bools, r: Floats, rows: Ints) -> None:
        self.rows, self.events = rows, np.flatnonzero(happened)
        self.later = np.lexsort((happened == 0, t))
        keys = _key(t, happened)
        self.begin = np.searchsorted(keys[self.later], keys[self.events], side="right")
        self.blocks, self.any = _won(t, happened, r, self.events), bool((self.begin < t.size).any())

    def count(self, weights: Floats) -> tuple[Floats, Floats]:
        """What is won, and the pairs, `[R]` each, of weights `[R, N]`."""
        w = weights[:, self.rows]
        alive = np.zeros((len(w), self.rows.size + 1))
        alive[:, :-1] = np.cumsum(w[:, self.later[::-1]], axis=1)[:, ::-1]
        pairs = np.einsum("re,re->r", w[:, self.events], alive[:, self.begin])
        won = np.zeros(len(w))
        for rows, twice in self.blocks:
            won += np.einsum("re,re->r", w[:, rows], w @ twice.T.astype(np.float64)) / 2
        return won, pairs


def survival_rows(time: npt.ArrayLike, event: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Times and events `[N]`. ValueError for other shapes, no rows, a time that is negative or not finite, or an event
    that is neither 0 nor 1."""
    t, e = np.asarray(time, np.float64), np.asarray(event)
    if t.ndim != 1 or t.size == 0 or e.shape != t.shape:
        raise ValueError(f"times and events must both be [N], N > 0; found {t.shape} and {e.shape}")
    wrong = ~(np.isfinite(t) & (t >= 0))
    if wrong.any():
        raise ValueError(
            f"times must be finite and not negative, found {t[wrong][0]} in row {np.flatnonzero(wrong)[0]}"
        )
    if not np.isin(e, (0, 1)).all():
        raise ValueError(f"events must be 0 or 1, found {e[~np.isin(e, (0, 1))][0]}")
    return t, e.astype(np.bool_)


def _key(t: Floats, happened: Bools) -> Ints:
    """A number `[N]` that rises with time, and at one time from events to censored rows."""
    rank: Ints = np.unique(t, return_inverse=True)[1]
    return 2 * rank + ~happened


def _won(t: Floats, happened: Bools, r: Floats, events: Ints) -> list[tuple[Ints, npt.NDArray[np.int8]]]:
    """Rows of events `[E]` and twice what they win against each row (0, 1, 2) `[E, N]`, in blocks."""
    size = max(1, PAIR_BYTES // (8 * t.size))
    out = []
    for first in range(0, events.size, size):
        rows = events[first : first + size]
        at, own = t[rows, None], r[rows, None]
        comparable = (t > at) | ((t == at) & ~happened)
        out.append((rows, (comparable * (2 * (own > r) + (own == r))).astype(np.int8)))
    return out
