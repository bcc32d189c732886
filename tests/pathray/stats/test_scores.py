"""Scores of predictions against scikit-learn, also with weights; intervals over clusters of rows."""

import numpy as np
import pytest
from sklearn import metrics

from pathray.stats.scores import classification_scores, cluster_interval, intervals, regression_scores


@pytest.fixture
def cases():
    g = np.random.default_rng(0)
    truth = g.integers(0, 3, 60)
    odds = np.round(g.random((60, 3)) + 0.6 * np.eye(3)[truth], 1)  # rounded: with ties
    weights = g.integers(1, 4, 60).astype(float)
    return truth, odds / odds.sum(axis=1, keepdims=True), weights


def test_accuracy_and_balanced_accuracy_are_scikit_learns(cases):
    truth, p, w = cases
    scores, both = classification_scores(truth, p), np.stack([np.ones(60), w])
    for name, oracle in (("accuracy", metrics.accuracy_score), ("balanced_accuracy", metrics.balanced_accuracy_score)):
        expected = [oracle(truth, p.argmax(1), sample_weight=row) for row in both]
        np.testing.assert_allclose(scores[name](both), expected)


def test_auc_is_the_macro_mean_of_each_class_against_the_rest(cases):
    truth, p, w = cases
    expected = [
        np.mean([metrics.roc_auc_score(truth == k, p[:, k], sample_weight=row) for k in range(3)])
        for row in (np.ones(60), w)
    ]
    np.testing.assert_allclose(classification_scores(truth, p)["auc"](np.stack([np.ones(60), w])), expected)


def test_two_classes_have_the_usual_auc(cases):
    truth, p, _ = cases
    two = (truth > 0).astype(int)
    p1 = 1 - p[:, 0]
    found = classification_scores(two, np.stack([1 - p1, p1], axis=1))["auc"](np.ones((1, 60)))
    assert found[0] == pytest.approx(metrics.roc_auc_score(two, p1))


def test_a_class_that_a_resample_lacks_does_not_count():
    """Rows 0 and 1 are class 0, row 2 is class 1. Without row 2 only class 0's recall is left, and no AUC."""
    scores = classification_scores(np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]))
    w = np.array([[1.0, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(scores["balanced_accuracy"](w), [0.5, 0.75])
    assert np.isnan(scores["auc"](w)[0]) and scores["auc"](w)[1] == 1.0


def test_scores_of_numbers_are_scikit_learns_and_numpys():
    g = np.random.default_rng(1)
    truth, w = g.standard_normal(50) + 100, g.integers(1, 4, 50)
    predicted = truth + g.standard_normal(50)
    scores, both = regression_scores(truth, predicted), np.stack([np.ones(50), w])
    np.testing.assert_allclose(
        scores["r2"](both), [metrics.r2_score(truth, predicted, sample_weight=row) for row in both]
    )
    np.testing.assert_allclose(
        scores["mae"](both), [metrics.mean_absolute_error(truth, predicted, sample_weight=row) for row in both]
    )
    repeated = np.repeat(np.arange(50), w)
    expected = [np.corrcoef(truth, predicted)[0, 1], np.corrcoef(truth[repeated], predicted[repeated])[0, 1]]
    np.testing.assert_allclose(scores["pearson"](both), expected)


def test_an_interval_resamples_persons_and_not_rows():
    """40 persons of 5 equal rows each: the deviation of the mean is that of 40 values, √5 times that of 200."""
    right = np.repeat(np.arange(40) % 2, 5)
    scores = classification_scores(np.ones(200, int), np.stack([1.0 - right, right], axis=1))
    persons = cluster_interval(scores["accuracy"], np.repeat(np.arange(40), 5), resamples=4000)
    rows = cluster_interval(scores["accuracy"], np.arange(200), resamples=4000)
    assert persons.estimate == rows.estimate == 0.5 and (persons.n, rows.n) == (40, 200)
    assert persons.high - persons.low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1)
    assert rows.high - rows.low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.1)


def test_a_difference_is_on_the_same_resamples():
    """b is wrong where a is, and once more in each person: the difference is the same in every resample."""
    g = np.random.default_rng(0)
    truth, persons = np.zeros(60, int), np.repeat(np.arange(20), 3)
    a = g.random(60) < 0.6
    a[::3] = True
    b = a.copy()
    b[::3] = False

    def scores_of(right):
        return classification_scores(truth, np.stack([1.0 * right, 1.0 - right], axis=1))["accuracy"]

    found = cluster_interval(scores_of(a), persons, minus=scores_of(b), resamples=300)
    np.testing.assert_allclose([found.estimate, found.low, found.high], 1 / 3)


def test_one_person_has_no_interval():
    found = intervals(regression_scores(np.arange(4.0), np.arange(4.0)), ["a"] * 4, resamples=10, seed=0)
    assert found["r2"].estimate == 1.0 and np.isnan(found["r2"].low) and found["mae"].n == 1
