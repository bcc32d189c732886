"""Ridge against scikit-learn, its strength by groups of the training rows; colours; the floor of the real set."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from core.errors import UserError
from regression.baseline import colour_features, fit_ridge


def test_a_fit_is_scikit_learns():
    g = np.random.default_rng(0)
    x, y = g.normal(2, 3, size=(50, 8)), g.normal(size=(50, 3))
    x[:, 5] = 4.0  # tells nothing
    fitted = fit_ridge(x[:40], y[:40], np.arange(40), [0.3])
    scaler = StandardScaler().fit(x[:40])
    expected = SklearnRidge(alpha=0.3 * 40).fit(scaler.transform(x[:40]), y[:40]).predict(scaler.transform(x[40:]))
    assert fitted(x[40:]) == pytest.approx(expected, abs=1e-10)


def test_the_strength_is_chosen_over_groups_left_out():
    """A feature that names the group helps within groups and misleads across them."""
    g = np.random.default_rng(1)
    groups = np.repeat(np.arange(8), 12)
    signature = g.normal(size=(8, 40))[groups] + 0.01 * g.normal(size=(96, 40))
    y = 5 * g.normal(size=(8, 2))[groups] + g.normal(size=(96, 2))
    by_group, by_row = fit_ridge(signature, y, groups), fit_ridge(signature, y, np.arange(96))
    assert by_group.strength >= 100 * by_row.strength
    alone = fit_ridge(signature, y, np.zeros(96))
    assert alone.strength == pytest.approx(by_row.strength, rel=99)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        fit_ridge([[np.nan], [1.0]], [[1.0], [2.0]], [0, 1])


def test_colour_features_are_means_and_deviations_of_light_and_density():
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 5, 5, 3)).astype(np.uint8)
    got = colour_features(pixels)
    light = pixels[1].reshape(-1, 3) / 255
    density = -np.log(np.maximum(light, 1 / 255))
    expected = [light.mean(0), light.std(0), density.mean(0), density.std(0)]
    assert got.shape == (2, 12) and got[1] == pytest.approx(np.concatenate(expected))
