"""DeLong's and Obuchowski's variances against loops over pairs in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pathray.stats.comparing.delong import auroc_covariance, delong, delong_test


def rows(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, two models' scores with ties, and patients of one to four slides."""
    g = np.random.default_rng(seed)
    y = g.random(n) < 0.4
    a = np.round(g.normal(size=n) + y, 1)
    return y, a, np.round(0.6 * a + g.normal(size=n), 1), np.sort(g.integers(0, n // 2, n))


def covariance_by_loops(y: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> tuple[list[float], np.ndarray]:
    """The formulas pair by pair: ψ = 1, ½ or 0 for a member above, at or below an other."""
    own, other, s = np.flatnonzero(y), np.flatnonzero(~y), len(scores)
    m, n = own.size, other.size
    psi = np.zeros((s, m, n))
    for k in range(s):
        for i, x in enumerate(own):
            for j, z in enumerate(other):
                psi[k, i, j] = (scores[k][x] > scores[k][z]) + 0.5 * (scores[k][x] == scores[k][z])
    auroc = [float(psi[k].sum() / (m * n)) for k in range(s)]
    out = np.zeros((s, s))
    names = sorted(set(clusters.tolist()))
    i10, i01 = len(set(clusters[own].tolist())), len(set(clusters[other].tolist()))
    for k in range(s):
        for q in range(s):
            s10 = s01 = s11 = 0.0
            for c in names:
                in_own, in_other = clusters[own] == c, clusters[other] == c
                u = [(psi[r].mean(axis=1)[in_own] - auroc[r]).sum() for r in (k, q)]
                v = [(psi[r].mean(axis=0)[in_other] - auroc[r]).sum() for r in (k, q)]
                s10, s01, s11 = s10 + u[0] * u[1], s01 + v[0] * v[1], s11 + u[0] * v[1] + u[1] * v[0]
            total = len(names)
            out[k, q] = (
                i10 / (i10 - 1) * s10 / m**2 + i01 / (i01 - 1) * s01 / n**2 + total / (total - 1) * s11 / (m * n)
            )
    return auroc, out


def delong_by_loops(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """S10/m + S01/n of 1988, with numpy's sample covariance of the placements."""
    v10, v01 = [], []
    for s in scores:
        psi = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    return np.cov(v10) / y.sum() + np.cov(v01) / (~y).sum()


def test_aurocs_and_covariance_are_delongs_with_ties():
    y, a, b, _ = rows()
    auroc, covariance = auroc_covariance(y, np.stack([a, b]))
    np.testing.assert_allclose(auroc, [roc_auc_score(y, a), roc_auc_score(y, b)], rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, delong_by_loops(y, np.stack([a, b])), rtol=0, atol=1e-12)


def test_the_clustered_covariance_is_obuchowskis():
    y, a, b, patients = rows(seed=1)
    auroc, covariance = auroc_covariance(y, np.stack([a, b]), patients)
    expected = covariance_by_loops(y, np.stack([a, b]), patients)
    np.testing.assert_allclose(auroc, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], rtol=0, atol=1e-12)


def test_clusters_of_one_row_are_delongs():
    y, a, b, _ = rows()
    both = np.stack([a, b])
    np.testing.assert_allclose(auroc_covariance(y, both, np.arange(60))[1], delong_by_loops(y, both), atol=1e-14)


def test_repeated_rows_do_not_narrow_the_clustered_interval():
    y, a, _, _ = rows()
    once, copies = delong(y, a), np.tile(np.arange(60), 5)
    clustered, naive = delong(y[copies], a[copies], copies), delong(y[copies], a[copies])
    assert clustered.value == pytest.approx(once.value, abs=1e-12)
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low, abs=1e-12)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_the_test_is_a_normal_one_of_the_difference():
    y, a, b, _ = rows(seed=2)
    found = delong_test(y, a, b)
    c = delong_by_loops(y, np.stack([a, b]))
    difference = roc_auc_score(y, a) - roc_auc_score(y, b)
    error = (c[0, 0] + c[1, 1] - 2 * c[0, 1]) ** 0.5
    assert found.z == pytest.approx(difference / error, abs=1e-10)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(difference / error)), abs=1e-12)
    low, high = norm.interval(0.95, difference, error)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=1e-12)
    turned = delong_test(y, b, a)
    assert turned.z == pytest.approx(-found.z) and turned.p_value == pytest.approx(found.p_value)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 6)), min_size=6, max_size=25)
)
@settings(deadline=None, max_examples=40)
def test_any_ties_and_clusters_agree_with_the_loops(given_rows):
    y, a, b, c = (np.array(column) for column in zip(*given_rows, strict=True))
    assume(np.unique(c[y]).size > 1 and np.unique(c[~y]).size > 1)
    both = np.stack([a, b]).astype(float)
    np.testing.assert_allclose(auroc_covariance(y, both, c)[1], covariance_by_loops(y, both, c)[1], atol=1e-12)


def test_the_p_value_is_uniform_under_the_null_hypothesis():
    g = np.random.default_rng(3)
    p = []
    for _ in range(400):
        y, shared = g.random(120) < 0.5, g.normal(size=120)
        a, b = (shared + y + 0.7 * g.normal(size=120) for _ in range(2))
        p.append(delong_test(y, a, b).p_value)
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03) and np.mean(p) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("y", "clusters", "reason"),
    [([1, 1, 1], None, "all rows are positive"), ([0, 0, 1], None, "two clusters with rows of each class")],
)
def test_without_a_variance_there_is_a_reason(y, clusters, reason):
    found = delong(y, [0.1, 0.2, 0.3], clusters)
    assert found.low is None and reason in found.reason
    test = delong_test(y, [0.1, 0.2, 0.3], [0.3, 0.1, 0.2], clusters)
    assert test.p_value is None and reason in test.reason


def test_models_that_rank_alike_and_perfect_scores_have_no_variance():
    y, a, _, _ = rows()
    same = delong_test(y, a, 3 * a + 1)
    assert same.p_value is None and same.difference.value == 0 and "alike" in same.reason
    perfect = delong([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert perfect.value == 1.0 and perfect.low is None and "no variance" in perfect.reason


def test_one_cluster_has_no_test():
    y, a, b, _ = rows()
    assert "two clusters" in delong_test(y, a, b, ["p"] * 60).reason
