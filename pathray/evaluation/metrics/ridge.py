"""Ridge regression of one number on frozen features, its strength chosen on held-out rows. NumPy only.

Not here: which rows are held out (whole groups: the caller's folds), scores (pathray.stats.scores).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
STRENGTHS = tuple(float(s) for s in 10.0 ** np.arange(-5, 5))  # of the penalty, per training row


@dataclass(frozen=True)
class Ridge:
    """ŷ = ȳ + ((x − mean) / std) w, w = argmin ‖y − Xw‖² + n·s·‖w‖² on standardised X and centred y."""

    mean: Floats
    std: Floats
    weights: Floats
    bias: float
    strength: float

    def __call__(self, features: npt.NDArray[np.floating[Any]]) -> Floats:
        """`[N, D]` → `[N]`."""
        out: Floats = (np.asarray(features, np.float64) - self.mean) / self.std @ self.weights + self.bias
        return out


def choose_ridge(
    features: npt.NDArray[np.floating[Any]], targets: Floats, held: Sequence[Bools],
    strengths: Sequence[float] = STRENGTHS,
) -> Ridge:  # fmt: skip
    """Ridge on rows `[N, D]`, `[N]` with the strength of the least squared error on the rows that each of `held` `[N]`
    keeps out; of equal ones the largest."""
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    ordered = sorted(strengths, reverse=True)
    errors = np.zeros(len(ordered))
    for mask in held if len(ordered) > 1 else ():
        errors += [np.square(fit(x[mask]) - y[mask]).sum() for fit in _path(x[~mask], y[~mask], ordered)]
    (best,) = _path(x, y, [ordered[int(np.argmin(errors))]])
    return best


def _path(x: Floats, y: Floats, strengths: Sequence[float]) -> Iterator[Ridge]:
    """A fit per strength, from one decomposition."""
    mean, std, bias = x.mean(axis=0), x.std(axis=0), float(y.mean())
    std = np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected = u.T @ (y - bias)
    for strength in strengths:
        yield Ridge(mean, std, vt.T @ (s / (s**2 + strength * len(x)) * projected), bias, float(strength))
