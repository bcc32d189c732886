"""Survival curves of censored times (Kaplan-Meier, Greenwood) and the log-rank test between groups. No torch.

Not here: how risks agree with times (pathray.stats.survival), drawing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, ndtri

from pathray.stats.survival import survival_rows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SurvivalCurve:
    """Survival after each distinct time of the data, its Greenwood error and interval, those at risk and events there.

    The interval is None where it is not defined: before the first event (survival 1) and at survival 0. `median` is the
    first time with a survival of at most ½, None where it is not reached.
    """

    time: list[float]
    survival: list[float]
    error: list[float | None]
    low: list[float | None]
    high: list[float | None]
    at_risk: list[int]
    events: list[int]
    median: float | None

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: no NaN, no infinity."""
        return dict(vars(self))


@dataclass(frozen=True)
class LogRank:
    """χ² with its degrees of freedom and p-value; per group events and those expected. None with the `reason`."""

    chi_squared: float | None
    degrees: int
    p_value: float | None
    groups: dict[str, dict[str, float]]
    reason: str | None = None


def kaplan_meier(time: npt.ArrayLike, event: npt.ArrayLike, *, level: float = 0.95) -> SurvivalCurve:
    """S(t) = Π (1 − d_i/n_i) over times t_i ≤ t, of times and events (0 or 1) `[N]` (Kaplan & Meier 1958).

    error = S √(Σ d_i/(n_i (n_i − d_i))) (Greenwood 1926). The interval is that of log(−log S), whose error is
    √(Σ …)/|log S|, so it stays within 0 and 1 (Kalbfleisch & Prentice 1980). ValueError as in `survival_rows`.
    """
    t, happened = survival_rows(time, event)
    times, place = np.unique(t, return_inverse=True)
    died, left = np.bincount(place, happened, times.size), np.bincount(place, minlength=times.size)
    at_risk = t.size - np.cumsum(left) + left
    survival = np.cumprod(1 - died / at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.cumsum(died / (at_risk * (at_risk - died))))
        logarithm = np.log(survival)
        far = float(ndtri(0.5 + level / 2)) * spread / logarithm  # not positive
        error = survival * spread
        low, high = np.exp(logarithm * np.exp(-far)), np.exp(logarithm * np.exp(far))
    inside = (survival > 0) & (survival < 1)
    half = np.flatnonzero(survival <= 0.5 + 1e-12)
    return SurvivalCurve(
        times.tolist(), survival.tolist(), _where(survival > 0, error), _where(inside, low),
        _where(inside, high), at_risk.tolist(), died.astype(np.int64).tolist(),
        float(times[half[0]]) if half.size else None,
    )  # fmt: skip


def log_rank(time: npt.ArrayLike, event: npt.ArrayLike, groups: npt.ArrayLike) -> LogRank:
    """Whether survival differs between groups `[N]`, of times and events `[N]` (Mantel 1966, Peto & Peto 1972).

    With d events of n at risk at a time, of which n_g in group g, e_g = d n_g/n are expected, with the covariance
    d (n − d)/(n − 1) · (n_g/n)([g = h] − n_h/n). χ² = (O − E)ᵀ V⁻ (O − E) with G − 1 degrees of freedom. No answer with
    one group, without an event, or where groups are never at risk together. ValueError as in `survival_rows`.
    """
    t, happened = survival_rows(time, event)
    labels: npt.NDArray[Any] = np.asarray(groups)
    if labels.shape != t.shape:
        raise ValueError(f"groups must be {t.shape}, found {labels.shape}")
    names, code = np.unique(labels, return_inverse=True)
    observed, expected, covariance = _observed_and_expected(t, happened, code, names.size)
    counted: dict[str, dict[str, float]] = {
        _name(g): {"n": float((code == i).sum()), "events": float(observed[i]), "expected": float(expected[i])}
        for i, g in enumerate(names)
    }
    if names.size < 2:
        return LogRank(None, 0, None, counted, f"there is one risk group, '{_name(names[0])}'")
    if not happened.any():
        return LogRank(None, names.size - 1, None, counted, "no row has an event")
    if np.linalg.matrix_rank(covariance, hermitian=True) < names.size - 1:
        return LogRank(None, names.size - 1, None, counted, "groups are not at risk together when events happen")
    apart = (observed - expected)[:-1]
    statistic = float(apart @ np.linalg.solve(covariance[:-1, :-1], apart))
    return LogRank(statistic, names.size - 1, float(chdtrc(names.size - 1, statistic)), counted)


def _observed_and_expected(
    t: Floats, happened: npt.NDArray[np.bool_], code: npt.NDArray[np.int64], count: int
) -> tuple[Floats, Floats, Floats]:
    """Events and expected ones `[G]`, and the covariance `[G, G]` of their difference."""
    times, place = np.unique(t, return_inverse=True)
    here, died = np.zeros((times.size, count)), np.zeros((times.size, count))
    np.add.at(here, (place, code), 1.0)
    np.add.at(died, (place, code), happened.astype(np.float64))
    at_risk = np.cumsum(here[::-1], axis=0)[::-1]
    n, d = at_risk.sum(axis=1), died.sum(axis=1)
    share = at_risk / n[:, None]
    factor = np.divide(d * (n - d), n - 1, out=np.zeros_like(n), where=n > 1)
    covariance = np.diag(factor @ share) - np.einsum("t,tg,th->gh", factor, share, share)
    return died.sum(axis=0), d @ share, covariance


def _name(group: Hashable) -> str:
    return str(group)


def _where(known: npt.NDArray[np.bool_], values: Floats) -> list[float | None]:
    return [float(v) if k else None for k, v in zip(known, values, strict=True)]
