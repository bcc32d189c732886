"""Scores of numbers and of ranks against scikit-learn; constants have none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from pathray.stats.estimates import estimate_scores
from pathray.stats.numeric import ordinal_set, regression_set


def test_ranks_are_scored_as_by_scikit_learn_with_weights():
    g = np.random.default_rng(0)
    y, w = g.integers(0, 5, 80), g.integers(0, 4, 80).astype(float)
    p = np.clip(y + g.integers(-1, 2, 80), 0, 4)
    both = np.stack([np.ones(80), w])
    found = ordinal_set(y, p, 5).values(both)
    for row, weights in enumerate(both):
        expected = metrics.cohen_kappa_score(y, p, weights="quadratic", sample_weight=weights)
        assert found["quadratic_kappa"][row] == pytest.approx(expected, abs=1e-12)
        expected = metrics.mean_absolute_error(y, p, sample_weight=weights)
        assert found["mae_ranks"][row] == pytest.approx(expected, abs=1e-12)


def test_numbers_are_scored_as_by_scikit_learn():
    g = np.random.default_rng(1)
    y = g.normal(size=60)
    p = y + 0.5 * g.normal(size=60)
    found = estimate_scores(regression_set(y, p), np.arange(60) // 2, resamples=200)
    assert found["r2"].value == pytest.approx(metrics.r2_score(y, p), abs=1e-12)
    assert found["pearson"].low < np.corrcoef(y, p)[0, 1] < found["pearson"].high


def test_a_constant_truth_has_no_r2_also_where_rounding_leaves_a_spread():
    found = estimate_scores(regression_set([0.1] * 7, np.linspace(0, 1, 7)), resamples=50)
    assert found["r2"].value is None and found["r2"].reason == "the truth is constant" and found["mae"].low is not None
    w = np.array([[0.0, 3, 3, 1], [1, 1, 1, 1]])
    drawn = regression_set([0.5, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4, 0.4]).values(w)
    assert np.isnan(drawn["r2"]).tolist() == np.isnan(drawn["pearson"]).tolist() == [True, False]


def test_one_rank_everywhere_has_no_kappa():
    found = estimate_scores(ordinal_set([2, 2], [2, 2], 4), resamples=20)["quadratic_kappa"]
    assert found.value is None and found.reason == "truth and prediction are 2 in all rows"


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [([0, 4], [0, 1], "truth must be in 0 … 3, found 4 in row 1"), ([0, 1], [0.5, 1], "found 0.5 in row 0"),
     ([0], [0, 1], "both be"), ([np.nan], [0], "not finite")],
)  # fmt: skip
def test_what_is_no_rank_is_refused(y, p, message):
    with pytest.raises(ValueError, match=message):
        ordinal_set(y, p, 4)
