"""Fits against scikit-learn's, run to convergence in float64 by Newton's method: its L-BFGS stops up to 8e-4 away at
C = 1e-8. Tolerance: coefficients to 2% of the largest (5e-4 up to C = 1), and no more than one row in a hundred decided
otherwise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pathray.evaluation.metrics import logistic
from pathray.evaluation.metrics.logistic import Rotated, fit_paths, logits, predict_classes

CS = [1e-8, 1e-4, 1e-2, 1.0, 100.0, 1e4]


def data(classes, n=600, dim=20, seed=0):
    g = np.random.default_rng(seed)
    y = g.integers(0, classes, n)
    x = g.normal(size=(n, dim)) * np.geomspace(1, 0.1, dim) + 0.5 * g.normal(size=(classes, dim))[y] + 3
    return x / np.linalg.norm(x, axis=1, keepdims=True), y, np.stack([g.random(n) < share for share in (0.7, 0.4)])


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_every_strength_gives_scikit_learns_optimum(classes):
    x, y, used = data(classes)
    rotated = Rotated(x)
    for c, w, b in fit_paths(rotated, y, used, CS):
        guess = predict_classes(logits(rotated.x, w, b))
        for i, rows in enumerate(used):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = LogisticRegression(C=c, tol=1e-9, max_iter=5000, solver="newton-cg").fit(x[rows], y[rows])
            apart = np.abs(w[i] @ rotated.vectors.T - model.coef_).max() / np.abs(model.coef_).max()
            assert apart < (5e-4 if c <= 1 else 2e-2), (c, apart)
            assert np.mean(guess[i] != model.predict(x)) <= 0.01, c


@pytest.mark.parametrize("classes", [2, 4])
def test_a_strong_penalty_on_even_classes_keeps_its_digits(classes):
    """All logits are near 1e-7: an intercept lost in rounding would make one class of everything."""
    x, _, _ = data(classes, n=120)
    y = np.arange(120) % classes
    x = x + 0.02 * np.random.default_rng(1).normal(size=(classes, 20))[y]
    rotated = Rotated(x)
    ((_, w, b),) = fit_paths(rotated, y, np.ones((1, 120), bool), [1e-8])
    exact = rotated.x.astype(np.float64)
    force = (np.eye(classes)[y] - 1 / classes).T @ exact * 1e-8  # of the first order in C
    force = force[1:] if classes == 2 else force
    np.testing.assert_allclose(w[0], force, atol=1e-4 * np.abs(force).max())
    assert np.mean(predict_classes(logits(rotated.x, w, b))[0] == y) > 1.3 / classes


def test_fits_do_not_depend_on_their_company():
    x, y, used = data(2)
    rotated = Rotated(x)
    together = [w[1] for _, w, _ in fit_paths(rotated, y, used, CS)]
    alone = [w[0] for _, w, _ in fit_paths(rotated, y, used[1:], CS)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_rows_that_do_not_train_have_no_say():
    x, y, used = data(2)
    changed = x.copy()
    changed[~used[0]] = x[~used[0]][::-1]
    for (_, w, _), (_, v, _) in zip(
        fit_paths(Rotated(x), y, used[:1], [1.0]), fit_paths(Rotated(changed), y, used[:1], [1.0]), strict=True
    ):
        a, b = w[0] @ Rotated(x).vectors.T, v[0] @ Rotated(changed).vectors.T
        np.testing.assert_allclose(a, b, atol=5e-3 * np.abs(a).max())


def test_separable_classes_end_at_the_bound_on_steps(monkeypatch):
    steps = []
    line = logistic._line
    monkeypatch.setattr(logistic, "_line", lambda *a: (steps.append(1), line(*a))[1])
    x = np.r_[np.full((20, 2), 1.0), np.full((20, 2), -1.0)] + 0.01 * np.random.default_rng(0).normal(size=(40, 2))
    ((_, w, b),) = fit_paths(Rotated(x), np.repeat([0, 1], 20), np.ones((1, 40), bool), [1e12], max_iter=7)
    assert len(steps) <= 7 and np.isfinite(w).all() and np.isfinite(b).all()
