"""AUROC and average precision of many weights at once against scikit-learn, also with ties and absent rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pathray.stats.bootstrap import cluster_counts
from pathray.stats.ranking import Ranking

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=30)


@given(ROWS)
@settings(deadline=None, max_examples=60)
def test_weighted_ranks_are_scikit_learns_with_ties_and_absent_rows(rows):
    own, score, w = (np.array(column) for column in zip(*rows, strict=True))
    here = w > 0
    auroc, precision = (v[0] for v in Ranking.of(own, score).both(w[None].astype(float)))
    if own[here].any() and not own[here].all():
        expected = metrics.roc_auc_score(own, score, sample_weight=w)
        assert auroc == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(auroc)
    if own[here].any():
        expected = metrics.average_precision_score(own[here], score[here], sample_weight=w[here])
        assert precision == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(precision)


def test_each_resample_is_scikit_learns_score_of_the_rows_drawn():
    g = np.random.default_rng(0)
    own, score = g.random(80) < 0.3, np.round(g.normal(size=80), 1)
    (w,) = cluster_counts(80, 40, 1)
    rows = [np.repeat(np.arange(80), times.astype(int)) for times in w]
    found = Ranking.of(own, score)
    expected = [metrics.roc_auc_score(own[r], score[r]) for r in rows]
    np.testing.assert_allclose(found.auroc(w), expected, rtol=0, atol=1e-12)
    expected = [metrics.average_precision_score(own[r], score[r]) for r in rows]
    np.testing.assert_allclose(found.average_precision(w), expected, rtol=0, atol=1e-12)


@given(ROWS)
@settings(deadline=None, max_examples=40)
def test_turned_scores_turn_the_auroc_and_weights_are_repeated_rows(rows):
    own, score, w = (np.array(column) for column in zip(*rows, strict=True))
    weights, repeated = w[None].astype(float), np.repeat(np.arange(w.size), w)
    auroc = Ranking.of(own, score).auroc(weights)
    np.testing.assert_allclose(Ranking.of(own, -score).auroc(weights), 1 - auroc, atol=1e-12)
    drawn = Ranking.of(own[repeated], score[repeated]).both(np.ones((1, repeated.size)))
    np.testing.assert_allclose(Ranking.of(own, score).both(weights), drawn, atol=1e-12)


def test_a_tie_between_the_classes_counts_half():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Ranking.of([1, 0], [0.5, 0.5]).auroc(np.ones((1, 2)))[0] == 0.5


@pytest.mark.parametrize(("score", "message"), [([0.1, np.nan], "not finite: nan"), ([0.1], "must both be")])
def test_what_cannot_be_ranked_is_refused(score, message):
    with pytest.raises(ValueError, match=message):
        Ranking.of([1, 0], score)
