"""The linear probe: logistic regression or ridge on frozen features, its strength chosen by inner folds of persons.

Not here: the fits themselves (pathray.evaluation.metrics.logistic, pathray.evaluation.metrics.ridge).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oct.downstream.folds import inner_masks
from pathray.evaluation.metrics.logistic import Rotated, fit_paths, logits
from pathray.evaluation.metrics.probe import CS, balanced_accuracy
from pathray.evaluation.metrics.ridge import choose_ridge

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating[Any]]


def linear_predictions(
    train_x: Features, train_y: Floats, groups: Sequence[str], test_x: Features, *, classes: int, inner: int, seed: int
) -> tuple[Floats, float]:
    """(predictions of the test rows, the chosen strength): probabilities `[M, K]` of `classes` K, or numbers `[M]`
    where K is 0. For features `[N, D]` with truth `[N]` of persons `groups` `[N]`, standardised by the training rows.
    """
    held = inner_masks(groups, train_y, inner, seed, classes)
    if not classes:
        ridge = choose_ridge(train_x, train_y, held)
        return ridge(test_x), ridge.strength
    mean, std = train_x.mean(axis=0, dtype=np.float64), train_x.std(axis=0, dtype=np.float64)
    std[std < 1e-12] = 1.0
    present, codes = np.unique(train_y.astype(np.int64), return_inverse=True)
    rotated = Rotated((train_x - mean) / std)
    used = np.stack([*(~mask for mask in held), np.ones(len(train_y), bool)])
    best, chosen, out = -1.0, CS[0], np.zeros((len(test_x), classes))
    placed = rotated.place((test_x - mean) / std)
    for c, w, b in fit_paths(rotated, codes.astype(np.int64), used, CS):
        z = logits(rotated.x, w, b)
        scores = [balanced_accuracy(codes[mask], _classes(z[i][:, mask])) for i, mask in enumerate(held)]
        if (score := float(np.mean(scores)) if scores else 0.0) > best + 1e-9:
            best, chosen = score, c
            out[:, present] = _probabilities(logits(placed, w[-1:], b[-1:])[0])
    return out, chosen


def _classes(z: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Class numbers `[N]` of logits `[M, N]`; M is 1 for two classes."""
    classes: npt.NDArray[np.int64] = (z[0] > 0).astype(np.int64) if len(z) == 1 else z.argmax(axis=0)
    return classes


def _probabilities(z: npt.NDArray[np.float32]) -> Floats:
    """Logits `[M, N]` → `[N, K]`."""
    both = np.concatenate([np.zeros_like(z), z]) if len(z) == 1 else z
    odds = np.exp((both - both.max(axis=0)).astype(np.float64))
    probabilities: Floats = (odds / odds.sum(axis=0)).T
    return probabilities
