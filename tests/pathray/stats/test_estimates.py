"""Intervals of many scores on shared resamples; what is missing has its reason."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.stats import weights
from pathray.stats.bootstrap import cluster_counts
from pathray.stats.classification import ClassifiedRows, classification_set
from pathray.stats.estimates import Estimate, ScoreSet, estimate_scores
from pathray.stats.weights import ratio, row_weights


def test_an_interval_is_that_of_the_rows_of_the_clusters_drawn():
    values, clusters = np.arange(12.0), np.repeat(["a", "b", "c", "d"], 3)
    found = estimate_scores(
        ScoreSet(12, lambda w: {"mean": ratio(w @ values, w.sum(axis=1))}), clusters, resamples=300, level=0.9
    )["mean"]
    (counts,) = cluster_counts(4, 300, 0)
    drawn = [np.concatenate([np.tile(values[3 * c : 3 * c + 3], int(n)) for c, n in enumerate(r)]) for r in counts]
    low, high = np.quantile([d.mean() for d in drawn], [0.05, 0.95])
    assert (found.value, found.clusters, found.level) == (5.5, 4, 0.9)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    codes = np.repeat(np.arange(9), 2)
    whole = np.concatenate(list(row_weights(codes, 9, resamples=50, seed=3)))
    monkeypatch.setattr(weights, "BLOCK_BYTES", 8 * 18 * 7)
    parts = list(row_weights(codes, 9, resamples=50, seed=3, block_bytes=weights.BLOCK_BYTES))
    assert len(parts) == 8 and np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(whole[:, ::2], whole[:, 1::2]) and (whole.sum(axis=1) == 18).all()


def test_a_rare_class_leaves_a_value_without_interval_and_says_so():
    """One of 30 rows is positive: (29/30)^30 = 36% of the resamples lack it."""
    y = np.zeros(30, int)
    y[4] = 1
    p = np.linspace(0, 1, 30)
    rows = ClassifiedRows.of(y, np.stack([1 - p, p], axis=1), ("no", "yes"))
    found = estimate_scores(classification_set(rows), resamples=500)
    auroc = found["auroc/yes"]
    assert auroc.value == pytest.approx(4 / 29) and auroc.low is None
    assert auroc.undefined_resamples / 500 == pytest.approx((29 / 30) ** 30, abs=0.06)
    assert "resamples do not define it" in (auroc.reason or "") and found["accuracy"].low is not None


def test_a_perfect_score_has_no_interval_of_zero_width():
    """Ten of ten right: the error is not 0, and resamples of them cannot show it."""
    rows = ClassifiedRows.of([0, 1] * 5, np.eye(2)[[0, 1] * 5], ("no", "yes"))
    accuracy = estimate_scores(classification_set(rows), resamples=200)["accuracy"]
    assert accuracy.value == 1.0 and accuracy.low is None and "the same value" in accuracy.reason


def test_what_is_missing_must_have_a_reason():
    with pytest.raises(AssertionError, match="reason"):
        Estimate(0.5)
    assert Estimate(None, reason="none").as_json()["value"] is None


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match="shape"):
        estimate_scores(ScoreSet(3, lambda w: {"n": w.sum(axis=1)}), ["a", "b"])
