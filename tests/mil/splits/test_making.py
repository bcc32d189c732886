"""Schemes of a labelled cohort: who is tested how often, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from mil.cohort import read_cohort
from mil.config import SplitsConfig
from mil.splits import check_parts, is_repeated, outer_of, splits_of
from mil.store.reading import Store
from pathray.errors import UserError
from tests.builders.mil import write_cohort


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_cohort(tmp_path_factory.mktemp("cohort"), patients=16)
    lines = (root / "slides.csv").read_text().splitlines()
    rows = [f"{line},{'AAB'[int(line[1:3]) % 3]},s{line[5]}" for line in lines[1:]]
    (root / "slides.csv").write_text("\n".join([f"{lines[0]},site,block", *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def cohort(root):
    return read_cohort(str(root / "slides.csv"), Store(str(root / "store")), label="label")


NESTED, MCCV = SplitsConfig("nested", folds=4, inner_folds=3), SplitsConfig("mccv", repeats=5)


def test_nested_splits_are_named_by_outer_and_inner_fold_and_test_every_slide_once(cohort):
    splits = splits_of(cohort, NESTED)
    assert list(splits) == [f"outer_{i}_inner_{j}" for i in range(4) for j in range(3)]
    check_parts(cohort, splits)
    tested = {outer_of(name): frozenset(split.rows("test").tolist()) for name, split in splits.items()}
    assert sorted(i for rows in tested.values() for i in rows) == list(range(len(cohort.names)))
    assert not is_repeated(splits)


def test_repeats_of_a_monte_carlo_may_test_a_patient_again_and_no_others_may(cohort):
    splits = splits_of(cohort, MCCV)
    check_parts(cohort, splits)
    tested = [set(split.rows("test").tolist()) for split in splits.values()]
    assert is_repeated(splits) and any(a & b for a in tested for b in tested if a is not b)
    mixed = splits | {"fold_0": splits_of(cohort, SplitsConfig(folds=3))["fold_0"]}
    with pytest.raises(UserError, match="a patient tests twice"):
        check_parts(cohort, mixed)


def test_inner_splits_that_test_other_slides_are_refused(cohort):
    splits = splits_of(cohort, NESTED)
    one = splits["outer_1_inner_2"]
    of = one.of.copy()
    of[one.rows("test")[0]] = "train"
    with pytest.raises(UserError, match="test different slides.*outer_1_inner_2"):
        check_parts(cohort, splits | {"outer_1_inner_2": replace(one, of=of)})


def test_a_custom_holdout_tests_what_the_filter_chooses(cohort):
    (split,) = splits_of(cohort, SplitsConfig("custom_holdout", filter='site == "B"')).values()
    number = np.array([int(name[1:3]) for name in cohort.names])
    assert np.array_equal(split.of == "test", number % 3 == 2)
    rest = split.of[number % 3 != 2]
    assert set(rest) == {"train", "val"} and (rest == "val").mean() == pytest.approx(0.15 / 0.85, abs=0.1)
    sides = {patient: set(split.of[cohort.groups == patient]) for patient in cohort.groups}
    assert all(len(parts) == 1 for parts in sides.values())


def test_a_patient_on_both_sides_of_the_filter_is_refused_with_an_example(cohort):
    with pytest.raises(UserError, match=r"row: 3; key: splits.filter; found: 'P00: p00_s1 is chosen, p00_s0 \(row 2\)"):
        splits_of(cohort, SplitsConfig("custom_holdout", filter='block == "s1"'))


@pytest.mark.parametrize("config", [NESTED, MCCV, SplitsConfig("custom_holdout", filter='site == "B"')])
def test_the_order_of_the_table_changes_no_split(cohort, root, config):
    first, *lines = (root / "slides.csv").read_text().splitlines()
    (root / "reversed.csv").write_text("\n".join([first, *lines[::-1]]) + "\n")
    other = read_cohort(str(root / "reversed.csv"), Store(str(root / "store")), label="label")
    for a, b in zip(splits_of(cohort, config).values(), splits_of(other, config).values(), strict=True):
        assert np.array_equal(a.of, b.of)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"scheme": "kfold"}, "splits.scheme"),
        ({"scheme": "custom_holdout"}, "a filter belongs to custom_holdout"),
        ({"filter": "a == 1"}, "a filter belongs to custom_holdout"),
        ({"fractions": [0.8, 0.2]}, "three values"),
        ({"scheme": "nested", "inner_folds": 1}, "inner_folds"),
        ({"scheme": "mccv", "repeats": 0}, "repeats"),
    ],
)
def test_settings_that_make_no_splits_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        SplitsConfig(**words)


def test_a_part_that_lacks_a_class_is_told(cohort, caplog):
    split = splits_of(cohort, SplitsConfig("holdout"))["run"]
    of = np.where(cohort.labels == "tumor", "train", split.of)
    check_parts(cohort, {"run": replace(split, of=of)})
    assert "run: no slide of test has class tumor" in caplog.text
