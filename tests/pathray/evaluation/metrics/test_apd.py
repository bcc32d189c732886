"""Splits counted by hand, the drop against scikit-learn's classifier trained row by row."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats.contingency import association
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics.apd import CS, average_performance_drop
from pathray.evaluation.metrics.apd_splits import (
    PLANS,
    Design,
    _describe_shortage,
    cells,
    cramers_v,
    design,
    measure_cramers_v,
    plan_opposed,
    repetitions,
)
from tests.builders.evaluation import Cohort, cohort


def grid(centers, classes, slides, patches, shared=False):
    """(labels, centers, slides): `slides` slides a cell of `patches` patches; `shared`: a slide has every class."""
    rows = [
        (f"y{y}", f"c{c}", f"s{c}-{s}" if shared else f"s{c}-{y}-{s}")
        for c in range(centers)
        for y in range(classes)
        for s in range(slides)
        for _ in range(patches)
    ]
    return tuple(np.array(v) for v in zip(*rows, strict=True))


SHAPES = {"camelyon": (2, 2, 17, 300), "tcga": (4, 4, 12, 30), "tolkach_esca": (2, 6, 9, 100)}


@pytest.mark.parametrize("name", PLANS)
def test_the_realised_correlation_is_the_plans_and_rises_from_0_to_1(name, capsys):
    centers, classes, slides, patches = SHAPES[name]
    rows = grid(centers, classes, slides, patches)
    found = design(name, *rows)
    assert found.reason == "" and found.plan is PLANS[name]
    draw = next(repetitions(found, *rows, count=1, seed=1000))
    v = [measure_cramers_v(train, rows[0], rows[1]) for train in draw.train]
    with capsys.disabled():
        print(f"\n{name}: Cramér's V per split", [round(value, 3) for value in v])
    assert v[0] == 0 and v[-1] == pytest.approx(1)
    assert (np.diff(v) > 0.05).all()
    assert v == pytest.approx([found.plan.correlation(s) for s in range(found.plan.splits)], abs=1e-9)
    assert {len(train) for train in draw.train} == {len(draw.train[0])}, "every split trains on as many patches"


def test_camelyons_splits_are_the_papers_numbers():
    rows = grid(2, 2, 17, 300)
    draw = next(repetitions(design("camelyon", *rows), *rows, count=1, seed=0))
    for s, train in enumerate(draw.train):
        table = [[np.sum((rows[1][train] == c) & (rows[0][train] == y)) for y in ("y0", "y1")] for c in ("c0", "c1")]
        assert table == [[(7 - s) * 300, (7 + s) * 300], [(7 + s) * 300, (7 - s) * 300]]
        assert len(draw.validation[s]) == 2 * (300 * (7 - s) // 14 + 300 * (7 + s) // 14)
        assert len(draw.test) == 4 * 2 * 300


def test_tcgas_splits_are_the_papers_numbers():
    for s, (own, across, rest) in enumerate(
        [(2, 2, 2), (3, 1, 2), (4, 2, 1), (5, 1, 1), (6, 0, 1), (7, 1, 0), (8, 0, 0)]
    ):
        slots = PLANS["tcga"].slots(s)
        assert np.diag(slots).tolist() == [own] * 4 and np.diag(slots[::-1]).tolist() == [across] * 4
        assert slots.sum() == 32 and slots.sum(axis=0).tolist() == [8] * 4 and rest in slots


@pytest.mark.parametrize("shared", [False, True])
def test_no_slide_trains_or_validates_and_tests(shared):
    rows = grid(2, 6, 9, 100, shared=shared)
    found = design("tolkach_esca", *rows)
    for draw in repetitions(found, *rows, count=5, seed=1000):
        tested = set(rows[2][draw.test])
        for train, validation in zip(draw.train, draw.validation, strict=True):
            assert not tested & set(rows[2][train]) and not tested & set(rows[2][validation])
            assert not set(train.tolist()) & set(validation.tolist())
        assert len(set(rows[0][draw.test])) == 6


def test_only_feasible_case_splits_are_drawn():
    """Two slides have both classes, the others one: the test set must leave each class enough."""
    labels, centers, slides = grid(2, 2, 4, 5)
    slides = np.where(np.isin(slides, ["s0-0-0", "s0-1-0"]), "both", slides)
    found = design("", labels, centers, slides)
    for draw in repetitions(found, labels, centers, slides, count=20, seed=0):
        assert not set(slides[draw.test]) & {s for train in draw.train for s in slides[train]}
        assert {(a, b) for a, b in zip(labels[draw.test], centers[draw.test], strict=True)} == {
            (y, c) for y in ("y0", "y1") for c in ("c0", "c1")
        }


def test_slides_that_cannot_be_kept_apart_for_the_test_are_no_feasible_case_split():
    """Five slides of every class: two train, one validates, two test. At c0 these are six slides in all, and class i is
    on all but the i-th: two slides that test give two classes only one, three give three classes too many."""
    labels, centers, slides = grid(2, 6, 5, 4)
    wanted = Design(plan_opposed(2, 6, 4, 2), ("c0", "c1"), tuple(f"y{i}" for i in range(6)))
    assert _describe_shortage(wanted, cells(wanted, labels, centers, slides)) == ""
    names = {f"s0-{y}-{s}": f"case{(y + 1 + s) % 6}" for y in range(6) for s in range(5)}
    slides = np.array([names.get(slide, slide) for slide in slides])
    table = cells(wanted, labels, centers, slides)
    assert not feasible_by_brute_force(table, 0, spare=2, least=2)
    expected = "the slides of c0 have several classes, and none of them can be kept apart for the test"
    assert _describe_shortage(wanted, table) == expected
    for draw in repetitions(design("", labels, centers, slides), labels, centers, slides, count=3, seed=0):
        assert not set(slides[draw.test]) & {s for train in draw.train for s in slides[train]}


def feasible_by_brute_force(table, center, spare, least):
    """Is there any set of slides that tests `least` slides of every class and takes at most `spare` of it?"""
    columns = [set(found) for (i, _), found in table.items() if i == center]
    names = sorted(set().union(*columns))
    for bits in range(1 << len(names)):
        taken = {name for b, name in enumerate(names) if bits >> b & 1}
        if all(least <= len(taken & column) <= spare for column in columns):
            return True
    return False


def test_a_plan_that_the_data_cannot_fill_is_reduced_and_says_why():
    rows = grid(2, 2, 9, 120)
    found = design("camelyon", *rows)
    assert "has 0 slides of 300 patches or more, expected 17" in found.reason
    assert (found.plan.train, found.plan.patches, found.plan.splits) == (6, 120, 4)
    v = [found.plan.correlation(s) for s in range(4)]
    assert v[0] == 0 and v[-1] == pytest.approx(1) and (np.diff(v) > 0).all()


def test_uneven_slides_still_give_the_planned_correlation():
    g = np.random.default_rng(0)
    labels, centers, slides = grid(2, 3, 12, 50)
    keep = g.random(len(labels)) < np.unique(slides, return_inverse=True)[1] % 7 / 6 + 0.02
    rows = labels[keep], centers[keep], slides[keep]
    found = design("mine", *rows)
    for draw in repetitions(found, *rows, count=3, seed=0):
        v = [measure_cramers_v(train, rows[0], rows[1]) for train in draw.train]
        assert v == pytest.approx([found.plan.correlation(s) for s in range(found.plan.splits)], abs=1e-9)


def test_labels_may_be_numbers():
    rows = tuple(np.unique(v, return_inverse=True)[1] for v in grid(2, 2, 6, 3))
    assert design("mine", *rows).plan.train == 4


def test_too_few_slides_are_refused_with_their_counts():
    with pytest.raises(Unfit, match=r"too few slides.*y0 at c0 3.*four slides"):
        design("mine", *grid(2, 2, 3, 9))


def test_cramers_v_is_scipys():
    table = np.random.default_rng(0).integers(1, 30, (4, 3))
    assert cramers_v(table) == pytest.approx(association(table, method="cramer"))
    assert cramers_v([[3, 0], [5, 0]]) == 0 and cramers_v([[3, 0], [0, 5]]) == pytest.approx(1)


def trained_row_by_row(data, found, repeats):
    """Balanced accuracies `[ID | OOD, repetitions, splits]` of scikit-learn's classifiers."""
    x = data.x / np.linalg.norm(data.x, axis=1, keepdims=True)
    inside, outside = np.flatnonzero(~data.ood), np.flatnonzero(data.ood)
    rows = data.labels[inside], data.centers[inside], data.slides[inside]
    expected = np.zeros((2, repeats, found.plan.splits))
    for r, draw in enumerate(repetitions(found, *rows, count=repeats, seed=1000)):
        for s in range(found.plan.splits):
            train, held = inside[draw.train[s]], inside[draw.validation[s]]
            best = -1.0
            for c in CS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x[train], data.labels[train])
                score = balanced_accuracy_score(data.labels[held], model.predict(x[held]))
                if score > best + 1e-12:
                    best = score
                    for where, test in enumerate((inside[draw.test], outside)[: 1 + bool(len(outside))]):
                        expected[where, r, s] = balanced_accuracy_score(data.labels[test], model.predict(x[test]))
    return expected


def test_the_drop_is_that_of_scikit_learn_trained_row_by_row():
    data = cohort(slides=9, patches=14, biology=0.4, shortcut=0.4, ood=True)
    got = average_performance_drop(data.x, data.labels, data.centers, data.slides, data.ood, repeats=2)
    expected = trained_row_by_row(data, got.design, 2)
    for found, wanted, row in ((got.accuracy_id, expected[0], 1 / 56), (got.accuracy_ood, expected[1], 1 / 252)):
        assert np.abs(found - wanted).max() <= 3 * row, "where a row flips in validation another strength is chosen"
        assert np.abs(found - wanted).mean() <= 1.5 * row
    assert expected[0].max() - expected[0].min() > 0.1
    drops = [(values[:, 1:] / values[:, :1]).mean(axis=1) - 1 for values in (got.accuracy_id, got.accuracy_ood)]
    assert got.apd_id.estimate == pytest.approx(drops[0].mean())
    assert got.apd_ood.estimate == pytest.approx(drops[1].mean())
    assert got.apd_avg.estimate == pytest.approx(np.mean(drops))
    half = student.ppf(0.975, 1) * drops[0].std(ddof=1) / np.sqrt(2)
    assert (got.apd_id.low, got.apd_id.high) == pytest.approx((drops[0].mean() - half, drops[0].mean() + half))


def test_the_drop_of_slides_of_1_to_500_patches_with_copies_is_that_of_scikit_learn():
    """A third centre has one class only and takes no part; every other patch has an exact copy, as blank tissue has."""
    data = cohort(sizes=(1, 500, 3, 40, 12, 120, 17, 64, 2), centers=3, biology=0.3, shortcut=0.3)
    data.x[1::2] = data.x[0 : len(data.x) - 1 : 2]
    keep = (data.centers != "c2") | (data.labels == "y0")
    data = Cohort(*(getattr(data, name)[keep] for name in ("x", "labels", "centers", "slides", "ood")))
    got = average_performance_drop(data.x, data.labels, data.centers, data.slides, data.ood, repeats=3)
    assert got.design.centers == ("c0", "c1")
    assert got.correlation == pytest.approx([got.design.plan.correlation(s) for s in range(got.design.plan.splits)])
    assert got.correlation[0] == 0 and got.correlation[-1] == pytest.approx(1) and (np.diff(got.correlation) > 0).all()
    inside = Cohort(*(getattr(data, n)[data.centers != "c2"] for n in ("x", "labels", "centers", "slides", "ood")))
    expected = trained_row_by_row(inside, got.design, 3)[0]
    assert np.abs(got.accuracy_id - expected).max() <= 3 / 40 and np.abs(got.accuracy_id - expected).mean() <= 1 / 40


def test_the_same_seed_gives_the_same_drop():
    data = cohort(slides=5, patches=5)
    run = lambda seed: average_performance_drop(  # noqa: E731
        data.x, data.labels, data.centers, data.slides, data.ood, repeats=2, seed=seed
    )
    assert np.array_equal(run(1).accuracy_id, run(1).accuracy_id)
    assert run(1).apd_ood is None and run(1).apd_avg == run(1).apd_id


def test_features_that_are_not_finite_are_refused_by_row():
    data = cohort(slides=4, patches=3)
    data.x[5, 0] = np.inf
    with pytest.raises(UserError, match=r"finite.*row: 5"):
        average_performance_drop(data.x, data.labels, data.centers, data.slides, data.ood)


def test_classes_keep_the_order_of_the_plan():
    rows = grid(2, 6, 9, 100)
    order = ("y5", "y0", "y3", "y1", "y2", "y4")
    assert design("tolkach_esca", *rows, classes=order) == Design(PLANS["tolkach_esca"], ("c0", "c1"), order)
    assert plan_opposed(6, 6, 100, 2).slots(3).tolist() == [[0, 0, 0, 6, 6, 6], [6, 6, 6, 0, 0, 0]]
