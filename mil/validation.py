"""What a validation says of predictions, in plain numbers without intervals: a loss, and scores. No torch.

Not here: predicting (mil.predict), intervals (mil.judging).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mil.target import CLASSES, ORDINAL, REGRESSION, SURVIVAL
from pathray.stats.estimates import ScoreSet
from pathray.stats.numeric import ordinal_set
from pathray.stats.scores import classification_scores, regression_scores
from pathray.stats.survival import concordance_set

Floats = npt.NDArray[np.float64]
LEAST = 1e-12  # probability, in the logarithm


def scores_of(truth: Floats, values: Floats, task: str) -> dict[str, float]:
    """`loss` and scores of the task; NaN: not defined, as of a model that has diverged.

    classification, ordinal: log-loss; accuracy, balanced_accuracy, auc; mae_ranks and quadratic_kappa of grades.
    regression: squared error; r2, mae, pearson. survival, of times and events `[N, 2]` and log-risks `[N, 1]`: the loss
    of `cox_loss`; c_index.
    """
    if not np.isfinite(values).all():
        finite = scores_of(truth, np.full_like(values, 1 / values.shape[1]), task)
        return dict.fromkeys(finite, float("nan"))
    if task == SURVIVAL:
        time, event, risk = truth[:, 0], truth[:, 1], values[:, 0]
        return {"loss": cox_loss(time, event, risk), **_whole(concordance_set(time, event, risk))}
    ones = np.ones((1, len(truth)))
    if task == REGRESSION:
        found = {name: float(score(ones)[0]) for name, score in regression_scores(truth, values[:, 0]).items()}
        return {"loss": float(np.square(truth - values[:, 0]).mean()), **found}
    number = truth.astype(np.int64)
    chosen = values[np.arange(len(number)), number]
    out = {"loss": float(-np.log(np.maximum(chosen, LEAST)).mean())}
    out |= {name: float(score(ones)[0]) for name, score in classification_scores(number, values).items()}
    if task == ORDINAL:
        out |= _whole(ordinal_set(number, values.argmax(axis=1), values.shape[1]))
    return out


def names_of(task: str) -> tuple[str, ...]:
    """The names of `scores_of`."""
    truth = np.array([[1.0, 1.0], [2.0, 0.0]]) if task == SURVIVAL else np.array([0.0, 1.0])
    values = np.array([[0.6, 0.4], [0.4, 0.6]]) if task in (CLASSES, ORDINAL) else np.array([[0.0], [1.0]])
    return tuple(scores_of(truth, values, task))


def cox_loss(time: Floats, event: Floats, risk: Floats) -> float:
    """−log partial likelihood per event, Breslow's for ties (Cox 1972), of `[N]`; NaN without an event.

    Σ_{i: event} (log Σ_{j: t_j ≥ t_i} exp(r_j) − r_i) / events.
    """
    if not event.any():
        return float("nan")
    order = np.argsort(-time, kind="stable")
    total = np.logaddexp.accumulate(risk[order])
    last = np.searchsorted(-time[order], -time, side="right") - 1  # of those with at least this time
    each = total[last] - risk
    return float(each[event > 0].mean())


def _whole(scores: ScoreSet) -> dict[str, float]:
    return {name: float(value[0]) for name, value in scores.values(np.ones((1, scores.n))).items()}
