"""Temperature scaling against a minimum by scipy, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss

from pathray.stats.calibrating.temperature import apply_temperature, fit_temperature


@pytest.fixture
def rows():
    g = np.random.default_rng(0)
    z = g.normal(size=(400, 3)) * 1.5
    truth = np.array([g.choice(3, p=p) for p in softmax(z, axis=1)])
    return truth, z


@pytest.mark.parametrize("sure", [0.4, 2.5])
def test_the_temperature_has_the_least_log_loss(rows, sure):
    truth, z = rows
    p = softmax(z * sure, axis=1)
    found = fit_temperature(truth, p)
    best = minimize_scalar(
        lambda t: log_loss(truth, softmax(z * sure / t, axis=1)), bounds=(0.05, 20), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert found.value == pytest.approx(best.x, rel=1e-5) and found.value == pytest.approx(sure, rel=0.25)
    assert found.log_loss_before == pytest.approx(log_loss(truth, p), abs=1e-12)
    assert found.log_loss_after == pytest.approx(best.fun, abs=1e-12)


def test_scaled_probabilities_are_the_softmax_of_logits_over_the_temperature(rows):
    _, z = rows
    found = apply_temperature(softmax(z, axis=1), 2.5)
    np.testing.assert_allclose(found, softmax(z / 2.5, axis=1), atol=1e-12)
    assert np.array_equal(found.argmax(axis=1), z.argmax(axis=1))
    assert np.isfinite(apply_temperature([[0.0, 1.0]], 3.0)).all()


def test_there_is_no_temperature_where_all_rows_are_right_or_none_is_better_than_chance():
    right = fit_temperature([0, 1], [[0.9, 0.1], [0.2, 0.8]])
    wrong = fit_temperature([1, 0], [[0.9, 0.1], [0.2, 0.8]])
    assert right.value is None and "all rows are right" in right.reason and right.log_loss_after is None
    assert wrong.value is None and "no better than chance" in wrong.reason


def test_what_cannot_be_scaled_is_refused():
    with pytest.raises(ValueError, match="must be positive, found 0"):
        apply_temperature([[0.5, 0.5]], 0)
    with pytest.raises(ValueError, match="0 … K-1"):
        fit_temperature([2], [[0.5, 0.5]])
