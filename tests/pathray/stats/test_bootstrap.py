"""Intervals against scipy, exact enumeration, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pathray.stats import bootstrap
from pathray.stats.bootstrap import Interval, cluster_counts, paired_difference, percentile_interval, t_interval


def test_the_t_interval_of_three_seeds_is_scipys():
    a, b = np.array([0.71, 0.74, 0.69]), np.array([0.65, 0.70, 0.66])
    got = paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert got.estimate == pytest.approx(np.mean(a - b)) and got.n == 3
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    narrow = t_interval(a - b, level=0.5)
    expected = stats.ttest_rel(a, b).confidence_interval(0.5)
    assert (narrow.low, narrow.high) == pytest.approx((expected.low, expected.high))


def test_the_percentile_interval_is_scipys_up_to_resampling_noise():
    g = np.random.default_rng(0)
    a, b = g.exponential(size=60) + 0.3, g.exponential(size=60)
    got = paired_difference(a, b, method="percentile", resamples=20_000)
    expected = stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert got.n == 60 and got.estimate == pytest.approx(np.mean(a - b))


def test_whole_clusters_are_resampled_with_their_rows():
    """Two clusters: the resample is AA, AB or BB with probabilities ¼, ½, ¼, so every quantile is known."""
    difference = np.array([1.0, 1.0, 1.0, 5.0])
    got = paired_difference(difference, np.zeros(4), method="percentile", clusters=["p", "p", "p", "q"])
    assert (got.estimate, got.low, got.high, got.n) == (2.0, 1.0, 5.0, 2)
    half = paired_difference(
        difference, np.zeros(4), method="percentile", clusters=["p", "p", "p", "q"], level=0.4, resamples=4000
    )
    assert half.low == half.high == 2.0


def test_clusters_widen_the_interval_of_repeated_rows():
    values = np.repeat(np.random.default_rng(1).normal(size=15), 20)
    zero, cluster = np.zeros(300), np.repeat(np.arange(15), 20)
    naive = paired_difference(values, zero, method="percentile")
    right = paired_difference(values, zero, method="percentile", clusters=cluster)
    assert (right.high - right.low) / (naive.high - naive.low) == pytest.approx(20**0.5, rel=0.25)
    means = paired_difference(values, zero, clusters=cluster)
    assert means == t_interval(values[::20]) or means.low == pytest.approx(t_interval(values[::20]).low)
    assert means.n == 15


def test_the_t_interval_covers_as_often_as_it_says():
    g = np.random.default_rng(3)
    hits = sum(abs(i.estimate) <= i.high - i.estimate for i in (t_interval(g.normal(size=4)) for _ in range(2000)))
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_resamples_do_not_depend_on_the_block(monkeypatch):
    whole = np.concatenate(list(cluster_counts(7, 50, seed=4)))
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 8 * 7 * 3)
    parts = list(cluster_counts(7, 50, seed=4))
    assert len(parts) == 17 and np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(axis=1) == 7).all() and whole.mean() == 1 and whole.var() == pytest.approx(6 / 7, rel=0.15)
    assert not np.array_equal(whole, np.concatenate(list(cluster_counts(7, 50, seed=5))))


def test_undefined_resamples_are_passed_over():
    low, high = percentile_interval(np.append(np.arange(101.0), np.nan), 0.9)
    assert (low, high) == pytest.approx((5, 95))


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1.0], [2.0], {}, "at least two"),
        ([1.0, np.nan], [1.0, 2.0], {}, "finite"),
        ([1.0, 2.0], [1.0, 2.0], {"clusters": ["x", "x"]}, "at least two"),
        ([1.0, 2.0], [1.0, 2.0], {"clusters": ["x"]}, "shape"),
    ],
)
def test_too_little_to_go_by_is_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, **options)


def test_an_interval_says_whether_it_excludes_zero():
    assert Interval(1, 0.5, 1.5, 0.95, 3).excludes_zero and not Interval(1, -0.5, 1.5, 0.95, 3).excludes_zero
    assert str(Interval(0.04, 0.02, 0.06, 0.95, 3)) == "+0.0400 [+0.0200, +0.0600] (95%, n = 3)"
