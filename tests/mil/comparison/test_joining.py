"""Experiments are compared on the same slides, labels and patients, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from mil.comparison import Experiment, compare
from mil.comparison.joining import join_slides
from pathray.errors import UserError
from tests.builders.slide_predictions import experiment, only_rows, predict_classes, predict_risks


def of(*tables):
    return [Experiment(f"e{i}", (one,)) for i, one in enumerate(tables)]


def test_order_of_rows_and_classes_changes_nothing():
    a, b = predict_classes(1.5), predict_classes(1.0, 1)
    order = np.random.default_rng(0).permutation(len(b))
    other = only_rows(b, order)
    other = replace(other, classes=b.classes[::-1], values=other.values[:, ::-1], truth=1 - other.truth)
    one, two = (compare(of(a, table), resamples=100).as_json() for table in (b, other))
    assert one == two


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: only_rows(b, np.arange(3, len(b))), "3 slides of other tables are missing: s000, s001, s002.*b.csv"),
        (lambda b: replace(b, classes=("normal", "cancer")), "other classes.*b.csv.*cancer, normal"),
        (lambda b: replace(b, truth=np.where(b.names == "s004", 1 - b.truth, b.truth)), r"slide s004 .*label \(1 sl"),
        (
            lambda b: replace(b, patients=np.roll(b.patients, 1)),
            "slide s000 has another patient.*p39.*p00, as in a.csv",
        ),
        (lambda b: replace(b, classes=(), values=b.values[:, :1]), "another kind.*numbers.*probabilities of classes"),
        (lambda b: replace(b, names=np.char.add("x", b.names)), "80 slides of other tables are missing"),
    ],
)
def test_what_is_not_of_the_same_slides_is_refused(change, said):
    a, b = (replace(predict_classes(1.0, i), file=f"{'ab'[i]}.csv") for i in range(2))
    with pytest.raises(UserError, match=said):
        join_slides(of(a, change(b)))


def test_seeds_of_one_experiment_must_have_the_same_slides_too():
    whole, part = predict_classes(1.0), only_rows(predict_classes(1.0, 1), np.arange(70))
    with pytest.raises(UserError, match="10 slides of other tables are missing"):
        join_slides([Experiment("a", (whole, part)), experiment("b", 1.0)])


def test_only_common_slides_are_counted():
    a, b = predict_classes(1.0), only_rows(predict_classes(1.0, 1), np.arange(4, 80))
    found = compare(of(a, b), only_common=True, resamples=50)
    assert found.slides == 76 and found.patients == 38
    assert found.experiments["e0"]["left_out"] == ["s000", "s001", "s002", "s003"]
    assert found.experiments["e1"]["left_out"] == [] and "4 slides of e0 are left out" in found.notes[-1]


def test_no_common_slide_is_refused():
    b = predict_classes(1.0, 1)
    with pytest.raises(UserError, match="no slide is in all tables"):
        join_slides(of(predict_classes(1.0), replace(b, names=np.char.add("x", b.names))), only_common=True)


def test_a_table_without_patients_takes_those_of_the_others():
    a, b = predict_classes(1.5), predict_classes(1.0, 1)
    found = compare(of(replace(a, patients=a.names), b), resamples=100)
    assert found.patients == 40 and found.pairs == compare(of(a, b), resamples=100).pairs


def test_pairs_of_patients_are_within_folds_that_all_tables_share():
    a, b = predict_risks(1.0, folds=2), predict_risks(1.0, 1, folds=3)
    folds = join_slides(of(a, b)).first.folds
    assert len(set(folds.tolist())) == 6
    assert (np.equal.outer(folds, folds) == np.equal.outer(a.folds, a.folds) & np.equal.outer(b.folds, b.folds)).all()


def test_another_outcome_is_refused():
    a, b = predict_risks(1.0), predict_risks(1.0, 1)
    with pytest.raises(UserError, match="slide s000 has another event"):
        join_slides(of(a, replace(b, events=1 - b.events)))
