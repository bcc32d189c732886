"""Folds and split files: no person on two sides, and what is missing is named."""

import numpy as np
import pytest

from oct.downstream.cohort import read_cohort
from oct.downstream.folds import inner_masks, splits_of
from pathray.errors import UserError
from tests.builders.oct.labelled import LABELS, NUMBERS, OF_VOLUMES, write_table


def cohort_of(folder, name=OF_VOLUMES, task="classification"):
    return read_cohort(f"{folder}/volumes.parquet", f"{folder}/{name}", "label", task)


def write_split(path, parts):
    lines = [f"p{i}.dcm,{person},{part}" for i, (person, part) in enumerate(parts)]
    path.write_text("\n".join(["path,group_id,split", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize(("name", "task"), [(OF_VOLUMES, "classification"), (NUMBERS, "regression")])
@pytest.mark.parametrize("validation", [False, True])
def test_every_person_is_tested_once_and_on_one_side(labelled, name, task, validation):
    cohort = cohort_of(labelled, name, task)
    splits = splits_of(cohort, split_file=None, k=3, seed=0, validation=validation)
    tested = np.concatenate([split.rows("test") for split in splits])
    assert sorted(tested.tolist()) == list(range(len(cohort.names)))
    for split in splits:
        sides = [set(cohort.groups[split.of == part]) for part in ("train", "val", "test")]
        assert not sides[0] & sides[2] and not sides[0] & sides[1] and not sides[1] & sides[2]
        assert bool(sides[1]) == validation
        if cohort.classes:
            assert set(cohort.truth[split.rows("train")]) == set(cohort.truth[split.rows("test")]) == {0, 1}


def test_a_class_of_fewer_persons_than_folds_is_refused(labelled, tmp_path):
    rows = [(f"{p:02d}", "rare" if p < 2 else "common") for p in range(12)]
    table = write_table(tmp_path / "l.csv", [("person_id", "label"), *rows])
    cohort = read_cohort(f"{labelled}/volumes.parquet", table, "label", "classification")
    with pytest.raises(UserError, match="rare: 2 persons, 3 folds.*data.folds=2"):
        splits_of(cohort, split_file=None, k=3, seed=0, validation=False)


def test_a_split_file_places_every_person(labelled, tmp_path):
    cohort = cohort_of(labelled, LABELS)
    parts = [(f"{p:02d}", ("train", "train", "val", "test")[p % 4]) for p in range(12)]
    (split,) = splits_of(cohort, split_file=write_split(tmp_path / "s.csv", parts), k=5, seed=0, validation=True)
    assert split.of.tolist() == [part for _, part in parts]
    with pytest.raises(UserError, match="labelled persons are not in the split.*1 persons, such as 11"):
        splits_of(cohort, split_file=write_split(tmp_path / "s.csv", parts[:-1]), k=5, seed=0, validation=True)
    with pytest.raises(UserError, match="more than one split"):
        splits_of(cohort, split_file=write_split(tmp_path / "s.csv", [*parts, ("00", "test")]), k=5, seed=0,
                  validation=True)  # fmt: skip
    with pytest.raises(UserError, match="no persons in this part.*test"):
        trained = [(person, "train") for person, _ in parts]
        splits_of(cohort, split_file=write_split(tmp_path / "s.csv", trained), k=5, seed=0, validation=False)


def test_inner_folds_keep_persons_whole_and_classes_even():
    persons = [f"p{i // 3}" for i in range(36)]
    truth = np.array([(i // 3) % 2 for i in range(36)], float)
    masks = inner_masks(persons, truth, 3, 0, 2)
    assert len(masks) == 3 and (np.sum(masks, axis=0) == 1).all()
    for mask in masks:
        held = {p for p, own in zip(persons, mask, strict=True) if own}
        assert not held & {p for p, own in zip(persons, mask, strict=True) if not own}
        assert truth[mask].mean() == 0.5
    assert len(inner_masks(["a", "a", "b"], np.zeros(3), 5, 0, 0)) == 2
