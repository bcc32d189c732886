"""Correlations and their cluster bootstrap against scipy, gene by gene and resample by resample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pathray.stats import correlation as module
from pathray.stats.bootstrap import cluster_counts
from pathray.stats.correlation import bootstrap_correlation, correlation, pearson, ranks, spearman

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}


def counts_like(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Continuous predictions and targets with many ties, as log counts have."""
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, k))
    return x, np.log1p(g.poisson(np.exp(x + g.normal(size=(n, k)))))


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_each_gene_is_scipys(method):
    x, y = counts_like(61, 9)
    got = correlation(x, y, method)
    assert got.values == pytest.approx([SCIPY[method](x[:, k], y[:, k]).statistic for k in range(9)], abs=1e-12)
    assert got.mean == pytest.approx(got.values.mean()) and got.n_undefined == 0
    rows = correlation(x, y, method, samplewise=True)
    whole = ~rows.undefined
    expected = [SCIPY[method](x[i], y[i]).statistic for i in np.flatnonzero(whole)]
    assert rows.values[whole] == pytest.approx(expected, abs=1e-12) and whole.sum() >= 55


def test_equal_values_share_their_average_rank():
    values = np.array([[3.0, 1.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert ranks(values).tolist() == [[4, 2, 4, 1, 4], [3] * 5, [5, 4, 3, 2, 1]]


@pytest.mark.parametrize("of", [pearson, spearman])
def test_a_constant_gene_counts_as_zero_and_is_reported(of):
    """Gene 0 is perfect, gene 1 has a constant prediction (not exactly: rounding), gene 2 a constant target."""
    y = np.array([[1.0, 1.0, 0.7], [2.0, 2.0, 0.7], [3.0, 5.0, 0.7], [4.0, 4.0, 0.7]])
    x = np.array([[1.0, 0.3, 1.0], [2.0, 0.3, 2.0], [3.0, 0.1 + 0.2, 3.0], [4.0, 0.3, 4.0]])
    got = of(x, y)
    assert got.values.tolist() == pytest.approx([1, 0, 0]) and got.undefined.tolist() == [False, True, True]
    assert (got.n_undefined, got.mean) == (2, pytest.approx(1 / 3))


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.1, 1e4, -3.0, 1e-6])
def test_a_prediction_that_is_constant_up_to_float32_rounding_is_none(constant, method):
    """Two bits up and down, as sums in another order give."""
    y = counts_like(40, 1)[1]
    single, steps = np.float32(constant), np.random.default_rng(1).integers(-2, 3, 40)
    x = (single + steps.astype(np.float32) * np.spacing(single)).astype(np.float64)[:, None]
    found = correlation(x, y, method)
    assert found.undefined.tolist() == [True] and found.values.tolist() == [0.0]
    drawn = bootstrap_correlation(x, y, np.arange(40) // 5, method=method, resamples=20).genes[0]
    assert (drawn.low, drawn.high) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize(("mean", "std"), [(1.0, 1e-4), (1e4, 1.0), (0.0, 1e-9), (-2.0, 1e-5)])
def test_a_prediction_that_varies_little_is_one(mean, std, method):
    x, y = counts_like(40, 1)
    little = (mean + std * x).astype(np.float32).astype(np.float64)
    found = correlation(little, y, method)
    assert not found.undefined.any()
    assert found.values == pytest.approx([SCIPY[method](little[:, 0], y[:, 0]).statistic], abs=1e-9)


def test_targets_are_exact_and_may_vary_by_less_than_predictions():
    x, y = counts_like(40, 1)
    found = pearson(x, 1.0 + 1e-8 * y)
    assert not found.undefined.any() and found.values == pytest.approx(pearson(x, y).values, abs=1e-5)


def test_a_large_offset_costs_no_digits():
    x, y = counts_like(200, 3)
    assert pearson(x + 1e6, y - 1e6).values == pytest.approx(pearson(x, y).values, abs=1e-9)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_every_resample_is_the_correlation_of_the_rows_drawn(method, monkeypatch):
    """Five clusters of unequal size; each resample is written out row by row and given to scipy."""
    monkeypatch.setattr(module, "RESAMPLES_AT_A_TIME", 7)
    x, y = counts_like(40, 3, seed=1)
    codes = np.repeat(np.arange(5), [3, 12, 5, 13, 7])
    y[codes == 0, 2] = 1.5  # drawn alone, this cluster leaves gene 2 constant
    (counts,) = cluster_counts(5, 30, 4)
    counts[0] = [5, 0, 0, 0, 0]
    monkeypatch.setattr(module, "cluster_counts", lambda *a: iter([counts]))
    expected = np.zeros((30, 3))
    for r, times in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(40), times[codes])
        for k in range(3):
            if np.ptp(y[rows, k]) > 0:
                expected[r, k] = SCIPY[method](x[rows, k], y[rows, k]).statistic
    assert expected[0, 2] == 0 and np.count_nonzero(expected) >= 85
    got = bootstrap_correlation(x, y, codes, method=method, resamples=30, level=0.9)
    assert [(i.low, i.high) for i in got.genes] == [
        pytest.approx(np.quantile(expected[:, k], [0.05, 0.95]).tolist(), abs=1e-5) for k in range(3)
    ]
    assert (got.mean.low, got.mean.high) == pytest.approx(np.quantile(expected.mean(axis=1), [0.05, 0.95]), abs=1e-5)
    assert got.mean.n == 5 and got.mean.estimate == pytest.approx(correlation(x, y, method).mean)


def test_clusters_that_repeat_rows_widen_the_interval():
    x, y = counts_like(30, 2, seed=2)
    cluster = np.tile(np.arange(30), 10)
    x, y = np.tile(x, (10, 1)), np.tile(y, (10, 1))
    right = bootstrap_correlation(x, y, cluster).genes[0]
    naive = bootstrap_correlation(x, y, np.arange(300)).genes[0]
    assert (right.high - right.low) / (naive.high - naive.low) == pytest.approx(10**0.5, rel=0.25)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0], [np.nan]], [[1.0], [2.0]], "predictions are not finite: nan in row 1, column 0"),
        ([[1.0], [2.0]], [[np.inf], [2.0]], "targets are not finite"),
        ([[1.0], [2.0]], [[1.0, 2.0]], "both"),
        ([[1.0]], [[2.0]], "at least two"),
    ],
)
def test_what_cannot_be_correlated_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        pearson(x, y)


def test_an_interval_needs_two_clusters():
    with pytest.raises(ValueError, match="at least two clusters"):
        bootstrap_correlation(*counts_like(9, 2), ["p"] * 9)
