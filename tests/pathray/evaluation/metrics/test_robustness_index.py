"""The robustness index against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics import robustness_index as module
from pathray.evaluation.metrics.robustness_index import neighbours, normalise, robustness_index


def brute_force(x, labels, centers, slides, k):
    """(SO, OS, votes): every distance in float64, equal ones by row number."""
    x = x.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    so = os = 0
    votes = []
    for i in range(len(x)):
        distance = ((x - x[i]) ** 2).sum(axis=1)
        others = [j for j in np.argsort(distance, kind="stable") if slides[j] != slides[i]][:k]
        so += sum(labels[j] == labels[i] and centers[j] != centers[i] for j in others)
        os += sum(labels[j] != labels[i] and centers[j] == centers[i] for j in others)
        names, counts = np.unique(labels[others], return_counts=True)
        votes.append(names[counts.argmax()] if len(others) else "")
    return so, os, np.array(votes)


def uneven(seed, sizes=(1, 500, 3, 40, 1, 120, 17, 64, 65, 2), classes=3, centers=2, dim=12):
    """Slides of 1 to 500 patches in a random order of rows."""
    g = np.random.default_rng(seed)
    slide = g.permutation(np.repeat(np.arange(len(sizes)), sizes))
    center, label = (np.arange(len(sizes)) % centers)[slide], g.integers(0, classes, len(slide))
    x = g.normal(size=(len(slide), dim)) + g.normal(size=(classes, dim))[label] + g.normal(size=(centers, dim))[center]
    return x.astype(np.float32), label, center, slide


@pytest.mark.parametrize("k", [1, 11, 70])
def test_slides_of_very_different_sizes_give_what_brute_force_gives(k):
    x, labels, centers, slides = uneven(k)
    got = robustness_index(x, labels, centers, slides, k=k)
    so, os, votes = brute_force(x, labels, centers, slides, k)
    assert (got.same_class_other_center, got.other_class_same_center) == (so, os)
    assert got.value == so / (so + os)
    assert got.accuracy == pytest.approx(balanced_accuracy_score(labels, votes), abs=1e-12)


def test_a_slide_of_300_patches_is_excluded_whole():
    """300 near-copies a slide: a search that left a margin of 64 would find the query's own slide."""
    g = np.random.default_rng(0)
    slide = np.repeat(np.arange(8), 300)
    label, center = np.arange(8) // 2 % 2, np.arange(8) % 2
    x = g.normal(size=(8, 16))[slide] + 0.01 * g.normal(size=(2400, 16))
    for rows, index in neighbours(normalise(x), slide, 11):
        assert (slide[index] != slide[rows][:, None]).all() and (index >= 0).all()
    got = robustness_index(x, label[slide], center[slide], slide, k=11)
    so, os, _ = brute_force(x, label[slide], center[slide], slide, 11)
    assert (got.same_class_other_center, got.other_class_same_center) == (so, os)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_equal_distances_go_by_row_number(seed, k):
    """Features on a coarse grid, with many exact copies, as blank tissue gives them."""
    g = np.random.default_rng(seed)
    n = 60
    x = g.integers(0, 2, (n, 3)).astype(np.float32) + 1
    labels, slides = g.integers(0, 2, n), g.integers(0, 9, n)
    centers = slides % 2
    got = robustness_index(x, labels, centers, slides, k=k)
    so, os, _ = brute_force(x, labels, centers, slides, k)
    assert (got.same_class_other_center, got.other_class_same_center) == (so, os)


def test_distances_that_float32_cannot_tell_apart_are_told_apart():
    g = np.random.default_rng(0)
    x = 1 + 1e-9 * g.normal(size=(80, 6))
    labels, slides = g.integers(0, 2, 80), np.arange(80) // 2
    got = robustness_index(x, labels, slides % 2, slides, k=5)
    so, os, _ = brute_force(x, labels, slides % 2, slides, 5)
    assert abs(got.same_class_other_center - so) + abs(got.other_class_same_center - os) <= 4
    assert got.same_class_other_center + got.other_class_same_center > 100


def test_blocks_do_not_change_the_answer(monkeypatch):
    data = uneven(5)
    whole = robustness_index(*data, k=11)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert robustness_index(*data, k=11) == whole


def test_auto_takes_the_k_of_the_best_vote_and_the_smallest_of_equals():
    x, labels, centers, slides = uneven(1, sizes=(30,) * 8)
    got = robustness_index(x, labels, centers, slides, k="auto")
    scores = {k: balanced_accuracy_score(labels, brute_force(x, labels, centers, slides, k)[2]) for k in module.KS}
    assert got.k == max(scores, key=lambda k: (round(scores[k], 12), -k))
    assert got.accuracies == pytest.approx(scores)
    so, os, _ = brute_force(x, labels, centers, slides, got.k)
    assert got.value == so / (so + os)


def test_a_centre_of_one_class_has_no_neighbour_of_another_class_and_the_same_centre():
    x, labels, centers, slides = uneven(2, sizes=(20,) * 9, centers=3)
    labels = np.where(centers == 2, 0, labels)
    got = robustness_index(x, labels, centers, slides, k=7)
    so, os, _ = brute_force(x, labels, centers, slides, 7)
    assert (got.same_class_other_center, got.other_class_same_center) == (so, os)


def test_parts_are_searched_apart_and_counted_together():
    x, labels, centers, slides = uneven(3, sizes=(15,) * 12, classes=4)
    parts = [np.flatnonzero(labels < 2), np.flatnonzero(labels >= 2)]
    got = robustness_index(x, labels, centers, slides, k=5, parts=parts)
    each = [brute_force(x[p], labels[p], centers[p], slides[p], 5) for p in parts]
    assert got.same_class_other_center == sum(e[0] for e in each)
    assert got.other_class_same_center == sum(e[1] for e in each)


def test_what_has_no_index_is_refused_by_name():
    x, labels, centers, slides = uneven(4, sizes=(5,) * 6)
    broken = x.copy()
    broken[7, 3] = np.nan
    with pytest.raises(UserError, match=r"finite.*row: 7"):
        robustness_index(broken, labels, centers, slides, k=3)
    broken[7] = 0
    with pytest.raises(UserError, match=r"length 0.*row: 7"):
        robustness_index(broken, labels, centers, slides, k=3)
    with pytest.raises(Unfit, match="medical centre"):
        robustness_index(x, labels, np.zeros(30), slides, k=3)
    with pytest.raises(Unfit, match="class"):
        robustness_index(x, np.zeros(30), centers, slides, k=3)


def test_centres_of_one_class_each_are_refused_as_the_index_would_be_1_of_any_features():
    """So are the tissue source sites of TCGA: every one sends one organ."""
    x, labels, centers, slides = uneven(6, sizes=(20,) * 8, centers=4)
    so, os, _ = brute_force(x, centers // 2, centers, slides, 5)
    assert os == 0 and so > 0
    with pytest.raises(Unfit, match=r"no centre has two classes.*would be 1"):
        robustness_index(x, centers // 2, centers, slides, k=5)
    with pytest.raises(Unfit, match=r"no class has two centres.*would be 0"):
        robustness_index(x, slides, slides // 2, slides, k=5)
    with pytest.raises(Unfit, match="two classes on two slides"):
        robustness_index(x, labels, slides, slides, k=5)
