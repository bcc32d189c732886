"""Targets are normalised by the training rows, and come back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pathray.errors import UserError
from regression.normalise import Normaliser


def test_targets_come_back_and_survive_a_file():
    y = np.random.default_rng(0).normal(3, [1e-3, 1, 50], size=(40, 3))
    fitted = Normaliser.fit(y[:30], ["a", "b", "c"])
    again = Normaliser.of(json.loads(json.dumps(fitted.plain())))
    assert np.abs(again.invert(fitted.apply(y)) - y).max() < 1e-12
    assert np.array_equal(again.mean, fitted.mean) and again.genes == ("a", "b", "c")


def test_only_training_rows_take_part():
    y = np.vstack([np.random.default_rng(0).normal(size=(30, 2)), np.full((9, 2), 1e6)])
    z = Normaliser.fit(y[:30], ["a", "b"]).apply(y[:30])
    assert z.mean(axis=0) == pytest.approx(0, abs=1e-12) and z.std(axis=0) == pytest.approx(1)
    assert np.array_equal(Normaliser.none(["a", "b"]).apply(y), y)


def test_a_gene_that_is_constant_in_training_is_named():
    y = np.array([[1.0, 2.0], [1.0, 3.0]])
    with pytest.raises(UserError, match="do not vary") as error:
        Normaliser.fit(y, ["dull", "lively"])
    assert error.value.where["found"] == ["dull"]
