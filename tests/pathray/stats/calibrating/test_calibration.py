"""Reliability bins and Brier's parts against sums in loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pathray.stats.calibrating.bins import brier_parts, reliability_bins
from pathray.stats.probability_scores import calibration_error

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


@pytest.fixture
def events():
    g = np.random.default_rng(0)
    p = g.random(300)
    return (g.random(300) < p**2).astype(int), p


@pytest.mark.parametrize(("by", "strategy"), [("width", "uniform"), ("count", "quantile")])
def test_bins_are_scikit_learns(events, by, strategy):
    y, p = events
    found = reliability_bins(y, p, bins=10, by=by)
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy=strategy)
    assert sum(b.n for b in found) == 300
    np.testing.assert_allclose([b.predicted for b in found], predicted, atol=1e-12 if by == "width" else 0.01)
    np.testing.assert_allclose([b.observed for b in found], observed, atol=1e-12 if by == "width" else 0.06)


def test_bins_by_count_are_equal_and_never_part_ties():
    assert [b.n for b in reliability_bins([0] * 12, np.linspace(0, 1, 12), bins=4, by="count")] == [3, 3, 3, 3]
    tied = reliability_bins([0, 1, 0, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9], bins=3, by="count")
    assert [(b.n, b.observed) for b in tied] == [(4, 0.5), (1, 1.0)]


def test_an_empty_bin_is_null_and_an_edge_belongs_below():
    found = reliability_bins([1, 0, 1], [0.0, 0.5, 0.75], bins=4)
    assert [b.n for b in found] == [1, 1, 1, 0] and found[3].predicted is None and found[3].observed is None


@given(ROWS, st.sampled_from(["width", "count"]), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_the_parts_sum_to_the_brier_score(rows, by, bins):
    y, p = (np.array(column) for column in zip(*rows, strict=True))
    parts = brier_parts(y, p / 20, bins=bins, by=by)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert parts.brier == pytest.approx(float(np.mean((p / 20 - y) ** 2)), abs=1e-12)
    assert total == pytest.approx(parts.brier, abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty) >= 0


def test_parts_of_few_probabilities_are_murphys(events):
    """One probability per bin: Murphy's three parts by a loop over probabilities, nothing within bins."""
    y, p = events[0], np.round(events[1], 1)
    parts = brier_parts(y, p, bins=20)
    groups = [(np.isclose(p, v).sum(), v, y[np.isclose(p, v)].mean()) for v in np.unique(p)]
    assert parts.reliability == pytest.approx(sum(n * (v - o) ** 2 for n, v, o in groups) / 300, abs=1e-12)
    assert parts.resolution == pytest.approx(sum(n * (o - y.mean()) ** 2 for n, _, o in groups) / 300, abs=1e-12)
    assert parts.within_bins == pytest.approx(0, abs=1e-12)
    assert parts.brier == pytest.approx(brier_score_loss(y, p), abs=1e-12)


def test_the_calibration_error_is_the_mean_gap_of_the_bins(events):
    y, p = events
    gaps = [b.n * abs(b.observed - b.predicted) for b in reliability_bins(y, p) if b.n]
    assert calibration_error(y.astype(float), p, np.ones((1, 300)))[0] == pytest.approx(sum(gaps) / 300, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "bins", "message"), [([0.1, 1.2], 5, r"in \[0, 1\], found 1.2"), ([0.1, 1], 0, "one bin")]
)
def test_what_is_no_probability_is_refused(p, bins, message):
    with pytest.raises(ValueError, match=message):
        reliability_bins([0, 1], p, bins=bins)
