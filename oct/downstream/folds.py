"""Who is tested, who validates and who trains: by a split file of persons, or by folds of whole persons.

Not here: how folds are made (pathray.data.splits), how split files are (oct.indexing.person_splits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oct.downstream.cohort import Cohort
from oct.indexing.person_splits import read_persons
from pathray.data.order import rng
from pathray.data.splits import SPLITS, Split, folds, stratified_folds
from pathray.errors import UserError
from pathray.urls import public

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def splits_of(cohort: Cohort, *, split_file: str | None, k: int, seed: int, validation: bool) -> list[Split]:
    """One split of the units by a file, or `k` folds that test every person once. No person is in two parts.

    UserError for persons that the file does not place, for parts without units, and for classes with too few persons.
    """
    if split_file:
        return [_of_file(cohort, split_file, validation)]
    if not cohort.classes:
        return folds(cohort, seed, k, validation=validation)
    _check_classes(cohort, k)
    labels = np.array([cohort.classes[int(t)] for t in cohort.truth], np.str_)
    return stratified_folds(cohort, labels, seed, k, validation=validation)


def check_parts(cohort: Cohort, splits: Sequence[Split]) -> None:
    """UserError for a split that has nothing to train on or to test, or only one class to train on."""
    for number, split in enumerate(splits):
        train = np.concatenate([split.rows("train"), split.rows("val")])
        sizes = {"train": len(train), "test": len(split.rows("test"))}
        key = f"split {number}" if len(splits) > 1 else "data.split_file"
        if not all(sizes.values()):
            message, expected = "a part has no labelled unit that can be read", "units of train and of test"
            raise UserError(message, file=cohort.file, key=key, found=sizes, expected=expected)
        if cohort.classes and len(found := set(cohort.truth[train].tolist())) < 2:
            message, only = "the training units are of one class", cohort.classes[int(found.pop())]
            raise UserError(message, file=cohort.file, key=key, found=only, expected="two classes or more")


def inner_masks(groups: Sequence[str], truth: npt.NDArray[np.float64], k: int, seed: int, classes: int) -> list[Bools]:
    """At most `k` masks of the rows that a fold of whole persons holds out, about equal in classes; one per person
    where there are fewer."""
    names, person = np.unique(np.asarray(groups), return_inverse=True)
    order = rng(seed, "inner", 0).permutation(len(names))
    if classes:
        most = np.zeros((len(names), classes))
        np.add.at(most, (person, truth.astype(int)), 1)
        order = order[np.argsort(most.argmax(axis=1)[order], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % k
    own = fold[person]
    return [own == i for i in range(min(k, len(names))) if (own == i).any() and not (own == i).all()]


def _of_file(cohort: Cohort, path: str, validation: bool) -> Split:
    """UserError naming what is missing."""
    of_person: dict[str, str] = {}
    needed = SPLITS if validation else ("train", "test")
    for part in SPLITS:
        try:
            persons = read_persons(path, part)
        except UserError:
            if part in needed:
                raise
            continue
        of_person |= dict.fromkeys(persons, part)
    lost = sorted(set(cohort.groups.tolist()) - of_person.keys())
    if lost:
        found, expected = f"{len(lost)} persons, such as {lost[0]}", "a part for every labelled person"
        raise UserError("labelled persons are not in the split", file=public(path), found=found, expected=expected)
    of = np.array([of_person[person] for person in cohort.groups.tolist()], "<U5")
    for part in needed:
        if part not in of:
            expected = f"labelled persons of {part}"
            raise UserError("no labelled unit is in this part", file=public(path), key=part, found=0, expected=expected)
    return Split(of, {"kind": "persons", "table": cohort.hash})


def _check_classes(cohort: Cohort, k: int) -> None:
    """UserError for a class of fewer persons than folds: some fold could not train on it, or not test it."""
    for number, name in enumerate(cohort.classes):
        persons = len(set(cohort.groups[cohort.truth == number].tolist()))
        if persons < k:
            message, found = "a class has fewer persons than there are folds", f"{name}: {persons} persons, {k} folds"
            expected = f"data.folds={persons}, or the class left out or joined" if persons > 1 else "the class left out"
            raise UserError(message, file=cohort.file, key="data.folds", found=found, expected=expected)
