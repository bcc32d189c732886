"""Confusion matrices of many resamples by one product, and the scores that follow from them. No torch.

A score that a matrix does not define is NaN. Not here: scores of ranks or of probabilities, intervals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def confusion_matrices(truth: Ints, predicted: Ints, k: int, w: Floats) -> Floats:
    """`[R, K, K]`: the weight of the rows of true class i that are predicted as j, for classes 0 … K−1 `[N]`."""
    cell = (truth * k + predicted)[:, None] == np.arange(k * k)
    matrices: Floats = (w @ cell.astype(np.float64)).reshape(len(w), k, k)
    return matrices


def class_scores(matrices: Floats) -> dict[str, Floats]:
    """recall, precision, specificity and f1 of each class `[R, K]`.

    recall = TP/(TP+FN), precision = TP/(TP+FP), specificity = TN/(TN+FP), f1 = 2TP/(2TP+FP+FN). A class without rows
    has no recall and no f1; one that is never predicted has no precision, and an f1 of 0.
    """
    right, true, called, total = _margins(matrices)
    rest = total[:, None] - true
    f1 = np.where(true > 0, ratio(2 * right, true + called), np.nan)
    return {
        "recall": ratio(right, true),
        "precision": ratio(right, called),
        "specificity": ratio(rest - (called - right), rest),
        "f1": f1,
    }


def accuracy(matrices: Floats) -> Floats:
    """`[R]`: the share of rows that are right."""
    right, _, _, total = _margins(matrices)
    return ratio(right.sum(axis=1), total)


def mcc(matrices: Floats) -> Floats:
    """`[R]`: Matthews' correlation, for K classes Gorodkin's R_K (2004); NaN where truth or prediction is one class.

    (c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)): c right ones of s rows, t_k true and p_k predicted of a class.
    """
    right, true, called, total = _margins(matrices)
    shared = right.sum(axis=1) * total - (true * called).sum(axis=1)
    spread = [np.square(total) - np.square(n).sum(axis=1) for n in (true, called)]
    return ratio(shared, np.sqrt(spread[0]) * np.sqrt(spread[1]))


def kappa(matrices: Floats, *, quadratic: bool = False) -> Floats:
    """`[R]`: Cohen's κ = 1 − Σ v O / Σ v E (1960; 1968 with weights); NaN where chance alone agrees always.

    O is the matrix, E = t pᵀ/s what its margins give by chance, and v = [i ≠ j], or (i − j)² where `quadratic`.
    """
    _, true, called, total = _margins(matrices)
    place = np.arange(matrices.shape[1], dtype=np.float64)
    apart = np.subtract.outer(place, place)
    cost = np.square(apart) if quadratic else (apart != 0).astype(np.float64)
    found = np.einsum("rij,ij->r", matrices, cost) * total
    return 1 - ratio(found, np.einsum("ri,ij,rj->r", true, cost, called))


def _margins(matrices: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Right, true and predicted rows of each class `[R, K]`, and all rows `[R]`."""
    true, called = matrices.sum(axis=2), matrices.sum(axis=1)
    return np.diagonal(matrices, axis1=1, axis2=2), true, called, true.sum(axis=1)
