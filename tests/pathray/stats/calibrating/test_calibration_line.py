"""Slope and intercepts against statsmodels, row weights as repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import logit

from pathray.stats.calibrating.line import calibration_line
from pathray.stats.estimates import estimate_scores


def events(n: int = 250) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    p = g.beta(0.5, 0.5, n)
    return (g.random(n) < 0.3 + 0.5 * p).astype(int), p, g.integers(0, 4, n).astype(float)


def test_the_line_is_statsmodels_with_and_without_weights():
    y, p, w = events()
    both = np.stack([np.ones(y.size), w])
    found = calibration_line(y, p).values(both)
    for row, weights in enumerate(both):
        kind, x = sm.families.Binomial(), logit(p)
        line = sm.GLM(y, sm.add_constant(x), family=kind, freq_weights=weights).fit(tol=1e-13)
        shift = sm.GLM(y, np.ones(y.size), family=kind, freq_weights=weights, offset=x).fit(tol=1e-13)
        assert (found["intercept"][row], found["slope"][row]) == pytest.approx(tuple(line.params), abs=1e-10)
        assert found["in_the_large"][row] == pytest.approx(shift.params[0], abs=1e-10)


def test_probabilities_that_are_right_have_a_line_through_zero_and_one():
    g = np.random.default_rng(2)
    p = g.random(4000)
    found = estimate_scores(calibration_line((g.random(4000) < p).astype(int), p), resamples=100)
    assert found["slope"].low < 1 < found["slope"].high and found["intercept"].low < 0 < found["intercept"].high
    sharper = p**3 / (p**3 + (1 - p) ** 3)
    assert calibration_line((g.random(4000) < p).astype(int), sharper).values(np.ones((1, 4000)))["slope"][
        0
    ] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("y", "p", "reason"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.9], "separate the outcomes"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.9], "separate the outcomes"),
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], "equal"),
        ([1, 1, 1, 1], [0.1, 0.2, 0.3, 0.9], "the outcome is 1 in all rows"),
    ],
)
def test_a_slope_without_a_finite_value_is_null_with_its_reason(y, p, reason):
    found = estimate_scores(calibration_line(y, p), resamples=50)
    assert found["slope"].value is None and reason in found["slope"].reason


def test_resamples_that_separate_the_outcomes_are_left_out():
    y, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.5, 0.9])
    w = np.array([[1.0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 2]])
    found = calibration_line(y, p).values(w)
    assert np.isnan(found["slope"]).tolist() == [False, True, False, True]
    assert np.isnan(found["in_the_large"]).tolist() == [False, False, False, True]


def test_certain_and_wrong_probabilities_still_converge():
    y, p = np.array([0, 1, 0, 1, 1, 0]), np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    slope = calibration_line(y, p).values(np.ones((1, 6)))["slope"][0]
    expected = np.log(2) / logit(1 - 1e-12)  # two of three are right on either side
    assert slope == pytest.approx(expected, rel=1e-6)
