"""Baselines that a regression must beat: ridge on frozen features, and ridge on the image's colours, the floor.

Closed form; the penalty is chosen by cross-validation over the groups of the training rows alone. NumPy only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.stats.correlation import pearson
from regression.plan import rows_of, targets

Floats = npt.NDArray[np.float64]
STRENGTHS = tuple(float(s) for s in 10.0 ** np.arange(-6, 4))  # of the penalty, per training row
TITLES = {"colour": "ridge on colours", "initial": "ridge on the initial backbone"}
MOST_FOLDS = 10
MOST_ROWS = 50_000  # that a ridge is fitted to: more do not improve it and cost memory
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ridge:
    """ŷ = ȳ + ((x − mean) / std) W, W = argmin ‖Y − XW‖² + n·s·‖W‖² on standardised X and centred Y."""

    mean: Floats
    std: Floats
    weights: Floats
    bias: Floats
    strength: float

    def __call__(self, features: npt.ArrayLike) -> Floats:
        """`[N, D]` → `[N, K]`."""
        out: Floats = (np.asarray(features, np.float64) - self.mean) / self.std @ self.weights + self.bias
        return out


def fit_ridge(
    features: npt.ArrayLike,
    targets: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    strengths: Sequence[float] = STRENGTHS,
) -> Ridge:
    """Ridge on training rows `[N, D]`, `[N, K]`, with the strength of the best correlation on held-out groups.

    The criterion is the reported one: the mean over genes of Pearson's r within a held-out group, averaged over groups.
    A squared error would be dominated by the offset of an unusual patient, and select the strongest penalty. With one
    group, folds are made of rows. UserError for features that are not finite.
    """
    x, y, labels = np.asarray(features, np.float64), np.asarray(targets, np.float64), np.asarray(groups)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("features or targets are not finite", found="NaN or inf", expected="numbers")
    scores = np.zeros(len(strengths))
    for held in _fold_masks(labels):
        if held.sum() > 1:
            scores += [pearson(fitted(x[held]), y[held]).mean for fitted in _path(x[~held], y[~held], strengths)]
    best = int(np.argmax(scores))
    (fitted,) = _path(x, y, strengths[best : best + 1])
    return fitted


def predictions(features: npt.NDArray[np.floating[Any]], plan: Plan, seed: int) -> Floats:
    """Predictions `[N, K]` for all rows, in the targets' own units, by ridge on `features` `[N, D]` of all rows of
    `plan.sources`, fitted to the training rows. Training rows with NaN features (unreadable images) are left out; for
    other such rows the prediction is NaN. Above MOST_ROWS a seeded sample is fitted."""
    known = np.isfinite(features).all(axis=1)
    train = rows_of(plan, "train")
    train = train[known[train]]
    if train.size > MOST_ROWS:
        log.info("the ridge is fitted to %d of %d training rows", MOST_ROWS, train.size)
        train = np.sort(rng(seed, "baseline", 0).permutation(train)[:MOST_ROWS])
    groups = np.array(plan.sources["group_id"].to_pylist())
    measured = targets(plan)
    fitted = fit_ridge(features[train], measured[train], groups[train])
    out = np.full_like(measured, np.nan)
    out[known] = fitted(features[known])
    return out


def colour_features(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Mean and deviation of each colour, as intensity and as optical density: `[N, H, W, 3]` → `[N, 12]`."""
    grey = np.arange(256) / 255.0
    values = np.stack([grey, -np.log(np.maximum(grey, 1 / 255))], axis=1)  # of each of the 256 levels
    out = np.empty((len(pixels), 2, 2, 3))
    for i, image in enumerate(pixels):
        for colour in range(3):
            levels = np.bincount(image[..., colour].ravel(), minlength=256) / (image.shape[0] * image.shape[1])
            mean = levels @ values
            out[i, :, 0, colour] = mean
            out[i, :, 1, colour] = np.sqrt(levels @ (values - mean) ** 2)
    return out.reshape(len(pixels), 12)


def _path(x: Floats, y: Floats, strengths: Sequence[float]) -> Iterator[Ridge]:
    """One fit per strength, from a single decomposition."""
    mean, std, bias = x.mean(axis=0), x.std(axis=0), y.mean(axis=0)
    std = np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected = u.T @ (y - bias)
    for strength in strengths:
        weights = vt.T @ ((s / (s**2 + strength * len(x)))[:, None] * projected)
        yield Ridge(mean, std, weights, bias, float(strength))


def _fold_masks(groups: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.bool_]]:
    """Masks of the rows that each fold holds out: whole groups, in at most MOST_FOLDS folds."""
    codes = np.unique(groups, return_inverse=True)[1]
    if codes.max() == 0:
        codes = np.arange(len(groups))
    for fold in range(min(MOST_FOLDS, int(codes.max()) + 1)):
        yield codes % MOST_FOLDS == fold
