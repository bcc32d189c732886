"""Slides to patients, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.stats.patients import aggregate


def test_patients_are_means_of_their_slides_counted_and_in_order():
    p = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7]])
    found = aggregate(["b", "a", "b", "b"], [1, 0, 1, 1], p)
    assert found.keys.tolist() == ["a", "b"] and found.truth.tolist() == [0, 1] and found.rows.tolist() == [1, 3]
    np.testing.assert_allclose(found.probabilities, [[0.4, 0.6], [0.4, 0.6]], atol=1e-15)


def test_one_positive_slide_makes_a_positive_patient():
    found = aggregate([1, 1, 2], [1, 1, 0], [[0.95, 0.05], [0.1, 0.9], [0.7, 0.3]], "max")
    np.testing.assert_allclose(found.probabilities, [[0.1, 0.9], [0.7, 0.3]], atol=1e-15)


def test_the_largest_of_several_classes_still_sum_to_one():
    found = aggregate(["p", "p"], [2, 2], [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], "max")
    np.testing.assert_allclose(found.probabilities, [[0.4, 0.2, 0.4]], atol=1e-15)


def test_a_patient_of_two_classes_is_named():
    with pytest.raises(ValueError, match=r"'p' has rows of different classes: \[0, 1\]"):
        aggregate(["p", "q", "p"], [0, 1, 1], np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="keys and truth"):
        aggregate(["p"], [0, 1], np.full((2, 2), 0.5))
