"""Thresholds against a search over all of them; rates against scikit-learn; grades worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pathray.stats.operating_points import (
    Threshold,
    choose_threshold,
    operating_point,
    stability,
    stability_grade,
)

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40)


def rates(y: np.ndarray, s: np.ndarray, threshold: float) -> tuple[float, float]:
    called = s >= threshold
    return float(called[y].mean()), float((~called)[~y].mean())


@given(ROWS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=80)
def test_a_chosen_threshold_is_the_best_of_all_scores(rows, bound):
    y, s = (np.array(column) for column in zip(*rows, strict=True))
    assume(y.any() and not y.all())
    every = {float(t): rates(y, s, t) for t in s}
    youden = choose_threshold(y, s, "youden")
    assert math.isfinite(youden.value) and youden.value in every
    assert sum(every[youden.value]) == pytest.approx(max(map(sum, every.values())), abs=1e-12)
    for rule, own in (("sensitivity", 0), ("specificity", 1)):
        found = choose_threshold(y, s, rule, at_least=bound)
        reached = {t: r for t, r in every.items() if r[own] >= bound - 1e-9}
        if not reached:
            assert found.value is None and f"no threshold reaches a {rule} of {bound:g}" in found.reason
            continue
        best = max((r[1 - own], r[own]) for r in reached.values())
        assert (every[found.value][1 - own], every[found.value][own]) == pytest.approx(best, abs=1e-12)


def test_youden_is_scikit_learns_and_finite_where_its_is_not():
    g = np.random.default_rng(0)
    y = g.random(200) < 0.4
    s = np.round(g.normal(size=200) + y, 1)
    fpr, tpr, thresholds = metrics.roc_curve(y, s)
    assert choose_threshold(y, s, "youden").value == thresholds[np.argmax(tpr - fpr)]
    backwards = choose_threshold([1, 0], [0.1, 0.9], "youden")  # the best of nothing: all rows are called positive
    assert backwards.value == 0.1


def test_no_threshold_is_named_where_none_reaches_the_bound():
    found = choose_threshold([0, 0, 1], [0.9, 0.1, 0.2], "specificity")
    assert found == Threshold("specificity >= 0.95", None, found.reason)
    assert found.reason == "no threshold reaches a specificity of 0.95; the best has 0.5000"
    point = operating_point([0, 0, 1], [0.9, 0.1, 0.2], found)
    assert point.rates["ppv"].reason == found.reason and point.grade is None
    assert choose_threshold([1, 1], [0.1, 0.2], "youden").reason == "all rows are positive"
    json.dumps(point.as_json(), allow_nan=False)


def test_rates_at_a_threshold_of_other_rows_are_scikit_learns():
    g = np.random.default_rng(1)
    y, patients = g.random(120) < 0.5, np.repeat(np.arange(40), 3)
    s = g.normal(size=120) + y
    threshold = choose_threshold(y[:60], s[:60], "sensitivity", at_least=0.7)
    point = operating_point(y[60:], s[60:], threshold, patients[60:], resamples=300)
    own, called = y[60:], s[60:] >= threshold.value
    expected = {
        "sensitivity": metrics.recall_score(own, called),
        "specificity": metrics.recall_score(~own, ~called),
        "ppv": metrics.precision_score(own, called),
        "npv": metrics.precision_score(~own, ~called),
    }
    for name, value in expected.items():
        rate = point.rates[name]
        assert rate.value == pytest.approx(value, abs=1e-12) and rate.low < value < rate.high and rate.clusters == 20


def test_a_threshold_that_calls_nobody_positive_has_no_ppv():
    point = operating_point([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], Threshold("fixed", 0.9), resamples=50)
    assert point.rates["ppv"].value is None and point.rates["ppv"].reason == "no row is called positive"
    assert point.rates["specificity"].value == 1.0 and point.rates["sensitivity"].value == 0.0


def test_stability_is_the_larger_change_of_sensitivity_on_either_side():
    """100 positives at .300, .301 …, threshold .35: .34 adds ten, .36 loses ten; .29 as a score is .30 − .01."""
    s = 0.3 + np.arange(100) / 1000
    assert stability(np.ones(100, int), s, 0.35) == pytest.approx(0.10)
    assert stability([1, 1, 1, 1], [0.29, 0.35, 0.5, 0.6], 0.3) == pytest.approx(0.25)
    assert stability([1, 1, 1, 1], [0.1, 0.3, 0.5, 0.6], 0.3) == pytest.approx(0.25)
    assert stability([0, 0], [0.1, 0.2], 0.1) is None
    assert [stability_grade(x) for x in (0, 0.02, 0.021, 0.05, 0.051, 0.1, 0.11)] == list("AABBCCD")
    assert operating_point(np.ones(100, int), s, Threshold("fixed", 0.35), resamples=20).grade == "C"


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [([0, 2], [0.1, 0.2], "0 or 1, found 2"), ([0, 1], [0.1], "both be"), ([0, 1], [0.1, np.inf], "inf in row 1")],
)
def test_what_has_no_threshold_is_refused(y, s, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold(y, s, "youden")
