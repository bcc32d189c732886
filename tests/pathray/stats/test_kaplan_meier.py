"""Survival curves and log-rank tests against scikit-survival and statsmodels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sksurv.compare import compare_survival
from sksurv.nonparametric import kaplan_meier_estimator
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from pathray.stats.kaplan_meier import kaplan_meier, log_rank


@pytest.fixture
def rows():
    """Times with ties, events, three groups."""
    g = np.random.default_rng(0)
    group = g.integers(0, 3, 90)
    return np.ceil(g.exponential(6 + 4 * group)), g.random(90) < 0.7, group


def test_the_curve_and_its_interval_are_scikit_survivals(rows):
    t, e, _ = rows
    found = kaplan_meier(t, e)
    times, survival, (low, high) = kaplan_meier_estimator(e, t, conf_type="log-log")
    assert found.time == times.tolist()
    np.testing.assert_allclose(found.survival, survival, rtol=0, atol=1e-12)
    inside = [i for i, v in enumerate(found.low) if v is not None]
    np.testing.assert_allclose([found.low[i] for i in inside], low[inside], rtol=0, atol=1e-12)
    np.testing.assert_allclose([found.high[i] for i in inside], high[inside], rtol=0, atol=1e-12)
    assert len(inside) == sum(0 < s < 1 for s in found.survival)


def test_errors_and_median_are_statsmodels_greenwood(rows):
    t, e, _ = rows
    found, expected = kaplan_meier(t, e), SurvfuncRight(t, e.astype(int))
    at = [found.time.index(x) for x in expected.surv_times]
    known = [i for i in at if found.survival[i] > 0]
    np.testing.assert_allclose([found.error[i] for i in known], expected.surv_prob_se[: len(known)], rtol=0, atol=1e-12)
    assert [found.at_risk[i] for i in at] == expected.n_risk.tolist()
    assert [found.events[i] for i in at] == expected.n_events.tolist()
    assert found.median == expected.quantile(0.5)


def test_a_curve_without_events_stays_at_one_and_without_survivors_ends_at_zero():
    still, gone = kaplan_meier([1, 2], [0, 0]), kaplan_meier([1, 2], [1, 1])
    assert still.survival == [1.0, 1.0] and still.median is None and still.low == [None, None]
    assert gone.survival == [0.5, 0.0] and gone.median == 1.0 and gone.high[1] is None and gone.error[1] is None
    for curve in (still, gone):
        json.dumps(curve.as_json(), allow_nan=False)


def test_the_log_rank_test_is_scikit_survivals_and_statsmodels(rows):
    t, e, group = rows
    found = log_rank(t, e, group)
    outcome = np.array(list(zip(e, t, strict=True)), dtype=[("e", bool), ("t", float)])
    expected, p, table, *_ = compare_survival(outcome, group, return_stats=True)
    assert (found.chi_squared, found.p_value) == pytest.approx((expected, p), abs=1e-12) and found.degrees == 2
    assert [g["expected"] for g in found.groups.values()] == pytest.approx(table["expected"].tolist(), abs=1e-12)
    two = group < 2
    expected, p = survdiff(t[two], e[two].astype(int), group[two])
    found = log_rank(t[two], e[two], group[two])
    assert (found.chi_squared, found.p_value) == pytest.approx((expected, p), abs=1e-12)


@pytest.mark.parametrize(
    ("e", "groups", "reason"),
    [
        ([1, 1, 0, 1], ["low"] * 4, "there is one risk group, 'low'"),
        ([0, 0, 0, 0], ["low", "low", "high", "high"], "no row has an event"),
        ([1, 0, 0, 0], ["low", "high", "high", "gone"], "not at risk together"),
    ],
)
def test_a_test_without_an_answer_is_null_with_its_reason(e, groups, reason):
    found = log_rank([2, 3, 4, 1], e, groups)
    assert found.p_value is None and found.chi_squared is None and reason in found.reason


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="groups must be"):
        log_rank([1, 2], [1, 0], ["a"])
