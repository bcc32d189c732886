"""Ridge regression of a number against scikit-learn, and its choice of strength."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Oracle

from pathray.evaluation.metrics.ridge import choose_ridge


def rows(n=40, d=60, noise=1.0):
    g = np.random.default_rng(0)
    x = g.standard_normal((n, d)) * g.uniform(0.1, 10, d) + 3
    return x, x[:, 0] / 5 + noise * g.standard_normal(n) + 7


def test_a_fit_is_scikit_learns_on_standardised_features():
    x, y = rows()
    z = (x - x.mean(0)) / x.std(0)
    fit = choose_ridge(x, y, [], [0.3])
    np.testing.assert_allclose(fit(x), Oracle(alpha=0.3 * len(x)).fit(z, y).predict(z), rtol=1e-9)


def test_the_strength_is_that_of_the_least_error_on_held_out_rows():
    x, y = rows()
    held = [np.arange(40) % 4 == i for i in range(4)]
    strengths = (1e-4, 1e-1, 1.0, 10.0, 1e3)
    errors = []
    for s in strengths:
        errors.append(0.0)
        for mask in held:
            mean, std = x[~mask].mean(0), x[~mask].std(0)
            oracle = Oracle(alpha=s * (~mask).sum()).fit((x[~mask] - mean) / std, y[~mask])
            errors[-1] += ((oracle.predict((x[mask] - mean) / std) - y[mask]) ** 2).sum()
    assert choose_ridge(x, y, held, strengths).strength == strengths[int(np.argmin(errors))]


def test_a_constant_feature_is_no_reason_to_fail():
    x, y = rows(d=4)
    x[:, 1] = 5.0
    fit = choose_ridge(x, y, [])
    assert np.isfinite(fit(x)).all() and fit.weights[1] == pytest.approx(0)
