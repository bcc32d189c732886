"""The full set of classification scores with class names: overall, macro and per class, each with its interval.

What is not defined is missing with its reason: a class without rows, a class that is never predicted, one cluster. A
macro score is the mean over all classes, and is missing where one of them is: a mean over those that happen to be there
would be another quantity. Not here: the single scores (ranking, confusion, probability_scores), curves, thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.stats import confusion
from pathray.stats.estimates import Estimate, ScoreSet, estimate_scores
from pathray.stats.probability_scores import probability_scores
from pathray.stats.ranking import Ranking

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CLASS_SCORES = ("auroc", "average_precision", "recall", "precision", "specificity", "f1")
SUM_TOLERANCE = 1e-3  # of the probabilities of a row: they may come from half precision


@dataclass(frozen=True)
class ClassifiedRows:
    """Rows with their true class (0 … K−1) `[N]` and probabilities `[N, K]`; the prediction is the likeliest class.

    ValueError for shapes that do not fit, fewer than two or repeated class names, no rows, a class out of range, and
    rows that are no probabilities.
    """

    truth: Ints
    probabilities: Floats
    names: tuple[str, ...]

    @classmethod
    def of(cls, truth: npt.ArrayLike, probabilities: npt.ArrayLike, names: Sequence[str]) -> ClassifiedRows:
        given, p, k = np.asarray(truth), np.asarray(probabilities, np.float64), len(names)
        if k < 2 or len(set(names)) < k:
            raise ValueError(f"at least two different class names are required, found {list(names)}")
        if given.ndim != 1 or given.size == 0 or p.shape != (given.size, k):
            raise ValueError(f"truth must be [N] and probabilities [N, {k}], N > 0; found {given.shape} and {p.shape}")
        wrong = ~np.isin(given, np.arange(k))
        if wrong.any():
            raise ValueError(f"truth must be in 0 … {k - 1}, found {given[wrong][0]} in row {np.flatnonzero(wrong)[0]}")
        wrong = ~((p >= 0) & (p <= 1)).all(axis=1) | ~(np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"probabilities must be in [0, 1] and sum to 1, found {p[row].tolist()} in row {row}")
        return cls(given.astype(np.int64), p, tuple(names))

    @property
    def predicted(self) -> Ints:
        """`[N]`: the most likely class; the first of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class ClassificationReport:
    """`overall` scores, those `per_class` by its name, and the confusion `matrix` `[K, K]` of truth and prediction."""

    names: tuple[str, ...]
    overall: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    matrix: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: no NaN, no infinity."""
        return {
            "classes": list(self.names),
            "overall": {name: e.as_json() for name, e in self.overall.items()},
            "per_class": {c: {n: e.as_json() for n, e in scores.items()} for c, scores in self.per_class.items()},
            "confusion_matrix": self.matrix,
        }


def classification_report(
    truth: npt.ArrayLike, probabilities: npt.ArrayLike, names: Sequence[str], clusters: npt.ArrayLike | None = None, *,
    level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> ClassificationReport:  # fmt: skip
    """All scores of classes `[N]` and probabilities `[N, K]` with intervals over whole clusters `[N]` (patients).

    Overall: accuracy, balanced_accuracy (mean recall), mcc, kappa, quadratic_kappa, log_loss, brier, ece, and the mean
    over classes of each class's scores (`CLASS_SCORES`, `…_macro`). For two classes also those of the second one, the
    positive class, under their plain names. ValueError as in `ClassifiedRows`.
    """
    rows = ClassifiedRows.of(truth, probabilities, names)
    found = estimate_scores(classification_set(rows), clusters, level=level, resamples=resamples, seed=seed)
    per_class = {c: {n: found.pop(f"{n}/{c}") for n in CLASS_SCORES} for c in rows.names}
    if len(rows.names) == 2:
        found = {**per_class[rows.names[1]], **found}
    k = len(rows.names)
    matrix = np.bincount(rows.truth * k + rows.predicted, minlength=k * k).reshape(k, k)
    return ClassificationReport(rows.names, found, per_class, matrix.tolist())


def classification_set(rows: ClassifiedRows) -> ScoreSet:
    """The scores of a report on shared weights; those of a class are named `score/class`."""
    truth, p, predicted, k = rows.truth, rows.probabilities, rows.predicted, len(rows.names)
    rankings = [Ranking.of(truth == c, p[:, c]) for c in range(k)]
    likely = probability_scores(truth, p)

    def values(w: Floats) -> dict[str, Floats]:
        matrices = confusion.confusion_matrices(truth, predicted, k, w)
        ranked = np.array([r.both(w) for r in rankings])  # [K, 2, R]
        each = {"auroc": ranked[:, 0].T, "average_precision": ranked[:, 1].T, **confusion.class_scores(matrices)}
        return {
            "accuracy": confusion.accuracy(matrices),
            "balanced_accuracy": each["recall"].mean(axis=1),
            "mcc": confusion.mcc(matrices),
            "kappa": confusion.kappa(matrices),
            "quadratic_kappa": confusion.kappa(matrices, quadratic=True),
            **{name: score(w) for name, score in likely.items()},
            **{f"{name}_macro": each[name].mean(axis=1) for name in CLASS_SCORES},
            **{f"{name}/{rows.names[c]}": each[name][:, c] for name in CLASS_SCORES for c in range(k)},
        }

    return ScoreSet(truth.size, values, _reasons(rows))


def _reasons(rows: ClassifiedRows) -> dict[str, str]:
    """Why a score is not defined on all rows, for each score that is not."""
    k = len(rows.names)
    true, called = (np.bincount(x, minlength=k) for x in (rows.truth, rows.predicted))
    absent = {c: f"class '{c}' has no rows" for c, n in zip(rows.names, true, strict=True) if n == 0}
    alone = {c: f"all rows are of class '{c}'" for c, n in zip(rows.names, true, strict=True) if n == true.sum()}
    never = {c: f"no row is predicted as '{c}'" for c, n in zip(rows.names, called, strict=True) if n == 0}
    cause = {
        "auroc": absent | alone, "average_precision": absent, "recall": absent, "precision": never,
        "specificity": alone, "f1": absent,
    }  # fmt: skip
    out = {f"{name}/{c}": why for name, of in cause.items() for c, why in of.items()}
    out |= {f"{name}_macro": "; ".join(of.values()) for name, of in cause.items() if of}
    one = [f"all rows are of class '{c}'" for c in alone]
    one += [f"all rows are predicted as '{c}'" for c, n in zip(rows.names, called, strict=True) if n == called.sum()]
    if absent:
        out["balanced_accuracy"] = "; ".join(absent.values())
    if one:
        out["mcc"] = out["kappa"] = out["quadratic_kappa"] = "; ".join(one)
    return out
