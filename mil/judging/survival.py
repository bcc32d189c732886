"""What risks say of survival: concordance with its interval, and curves of patients with low and high risk.

Patients are the units, for each lives once. Not here: the statistics (pathray.stats), the figure
(mil.judging.survival_figure).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.judging.predictions import Predictions
from pathray.errors import UserError
from pathray.stats.kaplan_meier import kaplan_meier, log_rank
from pathray.stats.survival import concordance

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]
LOW, HIGH = "lower risk", "higher risk"


@dataclass(frozen=True)
class Patients:
    """Times, events and log-risks `[P]`: the mean of each patient's slides. `folds`: the model, "" for a single one.
    `groups`: LOW, or HIGH where the risk is above the median of the same model's patients."""

    time: Floats
    event: Floats
    risk: Floats
    folds: Strings
    groups: Strings


def patients_of(predictions: Predictions) -> Patients:
    """UserError for a patient whose slides have two outcomes or two models."""
    assert predictions.events is not None
    folds = np.full(len(predictions), "") if predictions.folds is None else predictions.folds
    names, first, place = np.unique(predictions.patients, return_index=True, return_inverse=True)
    for key, column in (("time", predictions.truth), ("event", predictions.events), ("fold", folds)):
        if (off := np.flatnonzero(column != column[first][place])).size:
            patient, i = str(predictions.patients[off[0]]), off[0]
            message, found = f"patient {patient} has two values", f"{column[i]} and {column[first][place][i]}"
            raise UserError(message, file=predictions.file, key=key, found=found, expected="one per patient")
    risk = np.bincount(place, predictions.values[:, 0]) / np.bincount(place)
    own = folds[first]
    above = np.zeros(len(names), np.bool_)
    for fold in np.unique(own):
        rows = own == fold
        above[rows] = risk[rows] > np.median(risk[rows])
    return Patients(predictions.truth[first], predictions.events[first], risk, own, np.where(above, HIGH, LOW))


def judge_survival(predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Any]:
    """`c_index` (pairs within a fold alone), the curve and the median of each group, and the log-rank test between
    them. The groups come from risks alone, so the test is of predictions that no outcome has shaped."""
    units = patients_of(predictions)
    found = concordance(units.time, units.event, units.risk, strata=units.folds, resamples=resamples, seed=seed)
    groups: dict[str, Any] = {}
    for name in (LOW, HIGH):
        rows = units.groups == name
        if rows.any():
            curve = kaplan_meier(units.time[rows], units.event[rows])
            counts = {"patients": int(rows.sum()), "events": int(units.event[rows].sum())}
            groups[name] = {**counts, "curve": curve.as_json()}
    test = asdict(log_rank(units.time, units.event, units.groups))
    return {
        "c_index": found.as_json(),
        "patients": len(units.time),
        "events": int(units.event.sum()),
        "groups": groups,
        "log_rank": test,
    }
