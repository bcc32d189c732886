"""Differences of any score on the same resamples, against a loop over them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pathray.stats.bootstrap import cluster_counts
from pathray.stats.classification import ClassifiedRows, classification_set
from pathray.stats.comparing.scores import compare_scores


@pytest.fixture
def models():
    g = np.random.default_rng(0)
    y, patients = np.repeat(g.integers(0, 2, 40), 2), np.repeat(np.arange(40), 2)
    p = [1 / (1 + np.exp(-(gain * y + g.normal(size=80)))) for gain in (1.0, 1.0)]
    return y, p, patients


def scores_of(y, p):
    return classification_set(ClassifiedRows.of(y, np.stack([1 - p, p], axis=1), ("no", "yes")))


def test_the_difference_is_that_of_both_on_the_rows_drawn(models):
    y, (a, b), patients = models
    found = compare_scores(scores_of(y, a), scores_of(y, b), patients, resamples=200, level=0.9)["auroc/yes"]
    (counts,) = cluster_counts(40, 200, 0)
    drawn = []
    for times in counts:
        rows = np.repeat(np.arange(80), times[patients].astype(int))
        drawn.append(roc_auc_score(y[rows], a[rows]) - roc_auc_score(y[rows], b[rows]))
    low, high = np.quantile(drawn, [0.05, 0.95])
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=1e-12)
    assert found.difference.value == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b), abs=1e-12)
    below = sum(d <= 0 for d in drawn)
    assert 0 < below < 200
    assert found.p_value == pytest.approx(2 * (min(below, 200 - below) + 1) / 201)
    turned = compare_scores(scores_of(y, b), scores_of(y, a), patients, resamples=200)["auroc/yes"]
    assert turned.p_value == found.p_value and turned.difference.value == -found.difference.value


def test_a_model_against_itself_differs_by_nothing(models):
    y, (a, _), patients = models
    found = compare_scores(scores_of(y, a), scores_of(y, a), patients, resamples=50)["brier"]
    assert found.difference.value == 0 and found.difference.low is None and found.p_value is None
    assert "the same value" in found.difference.reason


def test_a_score_without_a_value_has_no_comparison():
    rows = [scores_of(np.zeros(6, int), p) for p in (np.linspace(0.1, 0.9, 6), np.linspace(0.2, 0.4, 6))]
    found = compare_scores(*rows, resamples=20)["auroc/yes"]
    assert found.p_value is None and found.difference.reason == "class 'yes' has no rows"


def test_models_of_unequal_rows_are_refused(models):
    y, (a, b), _ = models
    with pytest.raises(ValueError, match="same rows"):
        compare_scores(scores_of(y, a), scores_of(y[:9], b[:9]))
