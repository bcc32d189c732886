"""Predictions of slides to predictions of patients, or of any other key. No torch.

Not here: intervals over patients (clusters in pathray.stats.estimates).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
How = Literal["mean", "max"]


@dataclass(frozen=True)
class Aggregated:
    """M keys in rising order, with the class `[M]`, probabilities `[M, K]` and number of rows `[M]` of each."""

    keys: npt.NDArray[Any]
    truth: Ints
    probabilities: Floats
    rows: Ints


def aggregate(keys: npt.ArrayLike, truth: npt.ArrayLike, probabilities: npt.ArrayLike, how: How = "mean") -> Aggregated:
    """Rows of classes `[N]` and probabilities `[N, K]`, one per key `[N]`.

    ``mean``: of each class's probability. ``max``: for two classes the largest probability of the second, positive
    class, and the rest for the first, so one positive slide makes a positive patient; for more classes the largest of
    each class, divided by their sum. ValueError for shapes that do not fit, and for a key with two true classes.
    """
    names: npt.NDArray[Any] = np.asarray(keys)
    y, p = np.asarray(truth, np.int64), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or names.shape != p.shape[:1] or y.shape != names.shape:
        raise ValueError(f"keys and truth must be [N], probabilities [N, K]; found {names.shape}, {y.shape}, {p.shape}")
    unique, first, code, rows = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    differs = y != y[first][code]
    if differs.any():
        key = unique[code[np.flatnonzero(differs)[0]]]
        raise ValueError(f"'{key}' has rows of different classes: {sorted(set(y[names == key].tolist()))}")
    merged = _mean(p, code, rows) if how == "mean" else _largest(p, code, rows.size)
    return Aggregated(unique, y[first], merged, rows.astype(np.int64))


def _mean(p: Floats, code: Ints, rows: Ints) -> Floats:
    return np.stack([np.bincount(code, column, rows.size) for column in p.T], axis=1) / rows[:, None]


def _largest(p: Floats, code: Ints, count: int) -> Floats:
    largest = np.zeros((count, p.shape[1]))
    np.maximum.at(largest, code, p)
    if p.shape[1] == 2:
        largest[:, 0] = 1 - largest[:, 1]
    out: Floats = largest / largest.sum(axis=1, keepdims=True)
    return out
