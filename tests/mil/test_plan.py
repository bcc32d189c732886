import dataclasses

import numpy as np
import pytest

from mil.cohort import read_cohort
from mil.config import SplitsConfig
from mil.data import BagReader
from mil.plan import build_plan, class_counts, classes_of, identity, rows_of, strata, truth_of
from mil.splits import check_parts, splits_of
from mil.store.reading import Store
from pathray.data.split_files import write_split
from pathray.errors import UserError
from tests.builders.mil import write_cohort


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = write_cohort(tmp_path_factory.mktemp("cohort"), patients=12)
    store = Store(str(root / "store"))
    cohort = read_cohort(str(root / "slides.csv"), store, label="label")
    return store, cohort, splits_of(cohort, SplitsConfig(folds=3))


@pytest.fixture
def plan(inputs, tmp_path):
    store, cohort, splits = inputs
    return build_plan(cohort, splits["fold_0"], store, str(tmp_path / "plan"))


def test_every_patient_tests_once_and_is_on_one_side_of_each_fold(inputs):
    _, cohort, splits = inputs
    tested = [cohort.groups[split.rows("test")] for split in splits.values()]
    assert sorted(set(np.concatenate(tested))) == sorted(set(cohort.groups))
    for split in splits.values():
        sides = {g: set(split.of[cohort.groups == g]) for g in cohort.groups}
        assert all(len(parts) == 1 for parts in sides.values())
        assert {cohort.labels[i] for i in split.rows("test")} == {"normal", "tumor"}


def test_truth_of_test_slides_is_not_in_the_plan(inputs, plan, tmp_path):
    store, cohort, splits = inputs
    assert np.isnan(truth_of(plan, rows_of(plan, "test"))).all()
    assert np.isfinite(truth_of(plan, rows_of(plan, "val"))).all()
    truth = cohort.truth.copy()
    tested = splits["fold_0"].rows("test")
    truth[tested] = 1 - truth[tested]
    other = dataclasses.replace(cohort, truth=truth)
    again = build_plan(other, splits["fold_0"], store, str(tmp_path / "other"))
    assert identity(again) == identity(plan) and again.hash == plan.hash


def test_training_units_are_ranges_of_classes(plan):
    assert [(s.name, s.rows) for s in strata(plan)] == [("normal", 4), ("tumor", 4)]
    assert class_counts(plan).tolist() == [4, 4] and classes_of(plan) == ("normal", "tumor")
    truth = truth_of(plan, np.asarray(plan.take(np.arange(8))["source"], np.int64))
    assert truth.tolist() == [0] * 4 + [1] * 4


def test_bags_are_read_as_stored_and_padded_to_the_longest(inputs, plan):
    store = inputs[0]
    reader = BagReader(plan, seed=0)
    units = [reader.read({"source": i}, i, 0) for i in range(3)]
    batch = reader.collate(units)
    lengths = [len(unit["features"]) for unit in units]
    assert batch["features"].shape == (3, max(lengths), 8) and batch["mask"].sum(axis=1).tolist() == lengths
    slide = plan.sources["slide"][1].as_py()
    np.testing.assert_array_equal(batch["features"][1][: lengths[1]], store.features(slide))
    np.testing.assert_array_equal(batch["coords"][1][: lengths[1]], store.positions(slide))


def test_drawn_tiles_follow_from_the_position_and_evaluation_takes_all(plan):
    reader = BagReader(plan, seed=0, most=5)

    def drawn(position, attempt=0, reader=reader):
        return reader.read({"source": 0}, position, attempt)["features"]

    assert len(drawn(3)) == 5 and len(drawn(3, reader=reader.whole())) > 5
    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4)) and not np.array_equal(drawn(3), drawn(3, attempt=1))


def test_a_patient_in_two_test_parts_is_refused(inputs, tmp_path):
    _, cohort, splits = inputs
    for i, name in enumerate(("fold_0", "fold_0")):
        write_split(str(tmp_path / f"fold_{i}.csv"), cohort, splits[name])
    twice = splits_of(cohort, SplitsConfig(folder=str(tmp_path)))
    with pytest.raises(UserError, match=r"tests twice.*whom fold_0 tests, too"):
        check_parts(cohort, twice)


def test_more_folds_than_patients_of_a_class_are_refused_with_the_remedy(inputs):
    with pytest.raises(UserError, match=r"normal: 6, 7 folds.*splits\.folds=6"):
        splits_of(inputs[1], SplitsConfig(folds=7))
