"""Nested and Monte-Carlo splits: what is tested how often, that nothing is empty, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.data.repeated_splits import monte_carlo, nested_folds
from pathray.errors import UserError
from regression.tables.table import Table

PATIENTS, SLIDES = 40, 80


def table(patients: int = PATIENTS, per: int = 2, reverse: bool = False) -> Table:
    groups = np.repeat([f"p{i:02d}" for i in range(patients)], per)
    names = np.array([f"{i:03d}.png" for i in range(len(groups))])
    targets = np.arange(2.0 * len(groups)).reshape(-1, 2)
    step = -1 if reverse else 1
    return Table("/data/table.csv", names[::step], groups[::step], targets[::step], ("y0", "y1"))


def labels(of: Table, third: bool = True) -> np.ndarray:
    number = np.array([int(group[1:]) for group in of.groups])
    return np.where(number % 3 == 0, "tumour", "normal") if third else np.full(len(number), "")


def parts(of: Table, split) -> dict[str, set[str]]:
    return {part: set(of.groups[split.of == part].tolist()) for part in ("train", "val", "test")}


def whole_patients(of: Table, split) -> bool:
    found = parts(of, split)
    return sum(map(len, found.values())) == len(set(of.groups.tolist())) and set(split.of) <= set(found)


@pytest.mark.parametrize("third", [True, False])
def test_nested_folds_test_every_slide_in_exactly_one_outer_fold(third):
    """The predecessor tested 70 slides twice and 10 never."""
    of = table()
    outer = nested_folds(of, labels(of, third), 3, 5, 4)
    assert [len(inside) for inside in outer] == [4] * 5
    tested = np.zeros(SLIDES, int)
    for inside in outer:
        assert all(np.array_equal(one.of == "test", inside[0].of == "test") for one in inside)
        tested += inside[0].of == "test"
    assert tested.tolist() == [1] * SLIDES


def test_inner_folds_divide_the_patients_that_the_outer_one_does_not_test():
    of = table()
    for inside in nested_folds(of, labels(of), 3, 5, 4):
        validated = [parts(of, one)["val"] for one in inside]
        left = set(of.groups.tolist()) - parts(of, inside[0])["test"]
        assert sum(map(len, validated)) == len(left) and set.union(*validated) == left and all(validated)
        assert all(whole_patients(of, one) for one in inside)
        shares = [(labels(of)[one.of == "val"] == "tumour").mean() for one in inside]
        assert min(shares) > 0.1 and max(shares) < 0.6


@pytest.mark.parametrize("patients", [3, 4, 7, 40])
@pytest.mark.parametrize("third", [True, False])
def test_parts_of_monte_carlo_repeats_are_never_empty_and_never_share_a_patient(patients, third):
    """The predecessor's came back empty."""
    of = table(patients)
    repeats = 5 if patients > 4 else 2
    for split in monte_carlo(of, labels(of, third), 0, repeats):
        assert all(parts(of, split).values()) and whole_patients(of, split)


def test_monte_carlo_repeats_differ_keep_shares_and_do_not_depend_on_their_number():
    of = table()
    made = monte_carlo(of, labels(of), 1, 12, train=0.6, val=0.2, test=0.2)
    assert len({split.of.tobytes() for split in made}) == 12
    for split in made:
        for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert (split.of == part).mean() == pytest.approx(share, abs=0.05)
            assert (labels(of)[split.of == part] == "tumour").mean() == pytest.approx(14 / 40, abs=0.1)
    few = monte_carlo(of, labels(of), 1, 3, train=0.6, val=0.2, test=0.2)
    assert all(np.array_equal(a.of, b.of) for a, b in zip(few, made, strict=False))
    other = monte_carlo(of, labels(of), 2, 12, train=0.6, val=0.2, test=0.2)
    assert not any(np.array_equal(a.of, b.of) for a in made for b in other)


def test_a_class_of_two_patients_trains_and_tests():
    of = table(20)
    rare = np.where(np.isin(of.groups, ["p03", "p11"]), "rare", "common")
    for split in monte_carlo(of, rare, 0, 6):
        assert {part for part in ("train", "val", "test") if "rare" in rare[split.of == part]} == {"train", "test"}


def test_the_order_of_the_rows_changes_no_repeated_split():
    of, backwards = table(), table(reverse=True)
    for a, b in zip(monte_carlo(of, labels(of), 5, 4), monte_carlo(backwards, labels(backwards), 5, 4), strict=True):
        assert np.array_equal(a.of, b.of[::-1])
    nested = zip(
        nested_folds(of, labels(of), 5, 4, 3), nested_folds(backwards, labels(backwards), 5, 4, 3), strict=True
    )
    for inside, other in nested:
        assert all(np.array_equal(a.of, b.of[::-1]) for a, b in zip(inside, other, strict=True))


def test_what_cannot_be_repeated_or_nested_is_refused():
    with pytest.raises(UserError, match="fewer splits differ than repeats are asked for.*at most 6"):
        monte_carlo(table(3), labels(table(3), False), 0, 10)
    with pytest.raises(UserError, match="too few groups to split"):
        monte_carlo(table(2), labels(table(2), False), 0, 1)
    with pytest.raises(UserError, match="invalid number of folds.*9 folds of 8 groups"):
        nested_folds(table(10), labels(table(10), False), 0, 5, 9)
    of = table(12, 1)
    with pytest.raises(UserError, match="every label has fewer rows than there are folds"):
        nested_folds(of, np.array([f"c{i // 3}" for i in range(12)]), 0, 4, 2)
