"""Harrell's C against scikit-survival and a loop over pairs, with ties, weights and turned risks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sksurv.metrics import concordance_index_censored

from pathray.stats import survival
from pathray.stats.bootstrap import cluster_counts
from pathray.stats.survival import concordance, concordance_set

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 4)), min_size=2, max_size=30)


def cohort(n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in months with ties, events and rounded risks."""
    g = np.random.default_rng(0)
    risk = np.round(g.normal(size=n), 1)
    return np.ceil(g.exponential(10 * np.exp(-risk))), g.random(n) < 0.6, risk


def pairs_by_loop(t: np.ndarray, e: np.ndarray, r: np.ndarray) -> float:
    won = pairs = 0.0
    for i in range(t.size):
        for j in range(t.size):
            if e[i] and (t[j] > t[i] or (t[j] == t[i] and not e[j])):
                pairs += 1
                won += (r[i] > r[j]) + 0.5 * (r[i] == r[j])
    return won / pairs if pairs else float("nan")


def c_of(t, e, r, w=None):
    return concordance_set(t, e, r).values(np.ones((1, len(t))) if w is None else w)["c_index"]


def test_c_is_scikit_survivals_with_ties():
    t, e, r = cohort()
    assert c_of(t, e, r)[0] == pytest.approx(concordance_index_censored(e, t, r)[0], abs=1e-12)


@given(ROWS)
@settings(deadline=None, max_examples=60)
def test_any_ties_agree_with_a_loop_and_turned_risks_turn_c(rows):
    t, e, r = (np.array(column) for column in zip(*rows, strict=True))
    found = c_of(t, e, r)
    np.testing.assert_allclose(found, [pairs_by_loop(t, e, r)], rtol=0, atol=1e-12)
    np.testing.assert_allclose(c_of(t, e, -r), 1 - found, rtol=0, atol=1e-12)


def test_each_resample_is_scikit_survivals_c_of_the_rows_drawn(monkeypatch):
    monkeypatch.setattr(survival, "PAIR_BYTES", 8 * 120 * 7)  # pairs in several blocks
    t, e, r = cohort()
    patients = np.repeat(np.arange(60), 2)
    (counts,) = cluster_counts(60, 40, 0)
    chosen = [np.repeat(np.arange(120), times[patients].astype(int)) for times in counts]
    expected = [concordance_index_censored(e[i], t[i], r[i])[0] for i in chosen]
    np.testing.assert_allclose(c_of(t, e, r, counts[:, patients]), expected, rtol=0, atol=1e-12)
    low, high = np.quantile(expected, [0.025, 0.975])
    found = concordance(t, e, r, patients, resamples=40)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12) and found.clusters == 60


def test_a_model_that_is_wrong_is_not_turned_round():
    assert concordance([1, 2, 3, 4], [1, 1, 1, 1], [1, 2, 3, 4], resamples=20).value == 0.0


@pytest.mark.parametrize(
    ("t", "e", "reason"),
    [([1, 2, 3], [0, 0, 0], "no row has an event"), ([3, 3, 1], [1, 1, 0], "nobody outlives the first event")],
)
def test_without_comparable_pairs_c_is_null_with_its_reason(t, e, reason):
    found = concordance(t, e, [0.1, 0.2, 0.3], resamples=20)
    assert found.value is None and reason in found.reason


@pytest.mark.parametrize(
    ("t", "e", "r", "message"),
    [
        ([1, -2], [0, 1], [1, 2], "not negative, found -2.0 in row 1"),
        ([1, 2], [0, 3], [1, 2], "0 or 1, found 3"),
        ([1, 2], [0, 1], [1, np.nan], "finite numbers"),
        ([1, 2], [0], [1, 2], "both be"),
    ],
)
def test_rows_that_are_no_survival_data_are_refused(t, e, r, message):
    with pytest.raises(ValueError, match=message):
        concordance(t, e, r)


def test_with_strata_only_pairs_within_one_count():
    t, e, r = cohort()
    strata = np.arange(t.size) % 3
    apart = r + 100.0 * strata  # models whose risks have other zeros
    won = pairs = 0.0
    for k in range(3):
        rows = strata == k
        n = sum(
            e[rows][i] * ((t[rows] > t[rows][i]) | ((t[rows] == t[rows][i]) & ~e[rows])).sum()
            for i in range(rows.sum())
        )
        won, pairs = won + n * pairs_by_loop(t[rows], e[rows], r[rows]), pairs + n
    weights = np.ones((1, t.size))
    found = concordance_set(t, e, apart, strata).values(weights)["c_index"][0]
    assert found == pytest.approx(won / pairs, abs=1e-12)
    assert found == pytest.approx(concordance_set(t, e, r, strata).values(weights)["c_index"][0], abs=1e-12)
    assert abs(found - c_of(t, e, apart)[0]) > 0.05
    g = np.random.default_rng(1)
    codes = g.integers(0, 30, t.size)
    drawn = next(iter(cluster_counts(30, 8, 0)))[:, codes]
    repeated = [np.repeat(np.arange(t.size), row.astype(int)) for row in drawn]
    one_by_one = [
        concordance_set(t[i], e[i], r[i], strata[i]).values(np.ones((1, i.size)))["c_index"][0] for i in repeated
    ]
    np.testing.assert_allclose(concordance_set(t, e, r, strata).values(drawn)["c_index"], one_by_one, atol=1e-12)
