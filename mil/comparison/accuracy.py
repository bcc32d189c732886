"""McNemar's tests of whether two experiments are right equally often.

`slides`: every slide is taken as independent; only for one seed each. `patients`: the differences within a patient
stay together. With several seeds a row is a slide of a pair of seeds, every seed counts equally often, and the test is
of the mean accuracies over seeds. Not here: the tests (pathray.stats.comparing.mcnemar).
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.comparison.experiments import Experiment
from mil.judging.predictions import Predictions
from pathray.stats.comparing.mcnemar import clustered_mcnemar, mcnemar

Json = dict[str, Any]
Bools = npt.NDArray[np.bool_]


def compare_accuracies(a: Experiment, b: Experiment) -> Json:
    """`slides` and `patients`: only_a, only_b, method, statistic, p_value; or why there is no test. Strict JSON."""
    right_a, right_b = _paired(a, b)
    patients = np.tile(a.first.patients, len(right_a) // len(a.first))
    found = asdict(clustered_mcnemar(right_a, right_b, patients))
    if len(a.seeds) == len(b.seeds) == 1:
        slides = asdict(mcnemar(right_a, right_b))
    else:
        reason = "a slide occurs once per seed, so rows are not independent: see patients"
        slides = {"p_value": None, "reason": reason}
    return {"slides": slides, "patients": found}


def _paired(a: Experiment, b: Experiment) -> tuple[Bools, Bools]:
    """Rows of both `[N · lcm(S_a, S_b)]`, each seed of an experiment equally often."""
    right = [np.stack([_right(one) for one in experiment.seeds]) for experiment in (a, b)]
    rows = math.lcm(len(a.seeds), len(b.seeds))
    one, two = (np.tile(r, (rows // len(r), 1)).ravel() for r in right)
    return one, two


def _right(one: Predictions) -> Bools:
    return np.asarray(one.values.argmax(axis=1) == one.truth, np.bool_)
