"""How often 95% intervals of AUROC hold the true one where slides of a patient resemble each other."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.stats.comparing.delong import delong
from tests.builders.slide_scores import TRUE_AUROC, cohort, covers

COHORTS = 400


@pytest.mark.heavy
def test_resampling_patients_covers_and_resampling_slides_does_not():
    hits = np.zeros((COHORTS, 3))
    for seed in range(COHORTS):
        y, score, patients = cohort(seed)
        by_patient = delong(y, score, patients)
        hits[seed] = (
            covers(y, score, patients, 500),
            covers(y, score, None, 500),
            by_patient.low <= TRUE_AUROC <= by_patient.high,
        )
    patients, slides, obuchowski = hits.mean(axis=0)
    assert 0.93 <= patients <= 0.97 and 0.93 <= obuchowski <= 0.97
    assert slides < 0.90
