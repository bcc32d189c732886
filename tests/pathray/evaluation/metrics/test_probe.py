"""Probes against scikit-learn used directly, and against leakage between groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathray.errors import UserError
from pathray.evaluation.metrics import probe
from pathray.evaluation.metrics.probe import balanced_accuracy, grouped_split, knn_probe, linear_probe, nearest


def blobs(n: int, seed: int, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    y = g.integers(0, 3, n)
    centres = np.random.default_rng(99).normal(size=(3, 10)) * 2
    x = (centres[y] + g.normal(size=(n, 10)) * noise) * np.geomspace(0.01, 100, 10) + 5
    return x.astype(np.float32), np.array(["a", "b", "c"])[y]


def test_the_linear_probe_is_standardised_logistic_regression():
    (x, y), (tx, ty) = blobs(200, 0), blobs(150, 1)
    got = linear_probe(x, y, tx, ty, cs=[0.1])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(x), y)
    expected = model.predict(scaler.transform(tx))
    assert np.mean(got.predictions == expected) > 0.99
    assert got.accuracy == pytest.approx(np.mean(got.predictions == ty))
    assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(ty, got.predictions))
    assert got.accuracy > 0.6


def test_the_strength_is_chosen_without_the_test_rows_and_is_seeded():
    (x, y), (tx, ty) = blobs(120, 0, noise=3), blobs(150, 1, noise=3)
    one = linear_probe(x, y, tx, ty, seed=3)
    two = linear_probe(x, y, tx[::-1], np.roll(ty, 7), seed=3)
    assert one.chosen == two.chosen and np.array_equal(one.predictions, two.predictions[::-1])
    fit, held = grouped_split(y, None, 0.2, 3)
    scores = []
    for c in probe.CS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500)).fit(x[fit], y[fit])
        scores.append(balanced_accuracy_score(y[held], model.predict(x[held])))
    assert one.chosen == probe.CS[int(np.argmax(scores))] and len(set(scores)) > 2


def test_a_constant_feature_does_no_harm():
    (x, y), (tx, ty) = blobs(100, 0), blobs(50, 1)
    with_constant = [np.concatenate([a, np.full((len(a), 1), 3.0, a.dtype)], axis=1) for a in (x, tx)]
    assert np.array_equal(
        linear_probe(with_constant[0], y, with_constant[1], ty, cs=[1.0]).predictions,
        linear_probe(x, y, tx, ty, cs=[1.0]).predictions,
    )


@pytest.mark.parametrize("block_bytes", [1, 8 * 200 * 7, 64 << 20])
def test_neighbours_are_scikit_learns_whatever_the_block(block_bytes, monkeypatch):
    monkeypatch.setattr(probe, "BLOCK_BYTES", block_bytes)
    (x, y), (tx, ty) = blobs(200, 0), blobs(60, 1)
    got = knn_probe(x, y, tx, ty, k=1)
    oracle = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(x, y)
    assert np.mean(got.predictions == oracle.predict(tx)) > 0.98
    starts, index = zip(*[(s, i) for s, i, _ in nearest(x, tx, 9)], strict=True)
    unit, test = (a / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True) for a in (x, tx))
    similarity = test @ unit.T
    found = np.take_along_axis(similarity, np.concatenate(index), axis=1)
    np.testing.assert_allclose(found, -np.sort(-similarity, axis=1)[:, :9], atol=1e-6)
    assert starts[0] == 0 and sum(len(i) for i in index) == 60


def test_the_majority_wins_and_ties_go_to_the_more_similar():
    train = np.array([[1, 0.0], [1, 0.3], [0, 1], [1, -0.6], [1, -0.7]])
    y = np.array(["near", "near", "far", "far", "far"])
    test = np.array([[1.0, 0.05]])
    assert knn_probe(train, y, test, np.array(["near"]), k=4).predictions[0] == "near"
    assert knn_probe(train, y, test, np.array(["near"]), k=5).predictions[0] == "far"
    assert knn_probe(train, y, test, np.array(["near"]), k=50).chosen == 5


def test_equal_similarities_are_taken_by_index():
    train = np.repeat(np.eye(2), 5, axis=0)
    (_, index, similarity), *_ = nearest(train, np.array([[1.0, 0.0]]), 3)
    assert index.tolist() == [[0, 1, 2]] and similarity.tolist() == [[1.0, 1.0, 1.0]]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(1, 5), st.floats(0.05, 0.9), st.integers(0, 1000))
def test_no_group_stands_on_both_sides(groups, classes, fraction, seed):
    g = np.random.default_rng(seed)
    group = np.concatenate([np.arange(groups), g.integers(0, groups, 3 * groups)])
    y = g.integers(0, classes, groups)[group]
    train, held = grouped_split(y, group, fraction, seed)
    assert not set(group[train]) & set(group[held])
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(group.size))
    assert train.size and held.size
    strata = [np.bincount(y[group == i]).argmax() for i in range(groups)]
    assert set(y[train]) == set(y) or max(np.bincount(strata)) == 1
    again = grouped_split(y, group, fraction, seed)
    assert all(np.array_equal(a, b) for a, b in zip((train, held), again, strict=True))


def test_a_split_holds_out_the_fraction_of_every_class():
    y = np.repeat([0, 1], [800, 200])
    _, held = grouped_split(y, None, 0.2, 0)
    assert np.bincount(y[held]).tolist() == [160, 40]


def test_groups_stop_a_probe_from_recognising_slides():
    """Features are the slide's signature and nothing else, the label belongs to the slide: an ungrouped choice of C
    trusts the signature, and so does the training; across slides nothing is there to find."""
    g = np.random.default_rng(0)
    slide = np.repeat(np.arange(24), 12)
    y = (np.arange(24) % 2)[slide]
    x = g.normal(size=(24, 40))[slide] + 0.05 * g.normal(size=(288, 40))
    train, test = slide < 16, slide >= 16
    grouped = linear_probe(x[train], y[train], x[test], y[test], train_groups=slide[train], test_groups=slide[test])
    fit, held = grouped_split(y[train], None, 0.2, 0)
    leaking = linear_probe(x[train][fit], y[train][fit], x[train][held], y[train][held])
    assert leaking.accuracy == 1.0 and 0.2 < grouped.accuracy < 0.8


def test_input_that_cannot_be_probed_is_refused():
    (x, y), (tx, ty) = blobs(30, 0), blobs(20, 1)
    for run in (linear_probe, knn_probe):
        with pytest.raises(UserError, match=r"both sides|training and in test.*3"):
            run(x, y, tx, ty, train_groups=np.arange(30) % 4, test_groups=np.full(20, 3))
        with pytest.raises(UserError, match="two classes"):
            run(x, np.full(30, "a"), tx, ty)
        with pytest.raises(UserError, match="row: 4"):
            run(np.where(np.arange(30)[:, None] == 4, np.nan, x), y, tx, ty)
        with pytest.raises(UserError, match="do not match"):
            run(x, y[:-1], tx, ty)
    with pytest.raises(UserError, match="at least two groups"):
        grouped_split(y, np.zeros(30), 0.2, 0)


def test_balanced_accuracy_is_scikit_learns():
    truth, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 3])
    assert balanced_accuracy(truth, predicted) == pytest.approx((2 / 3 + 1 + 0) / 3)
