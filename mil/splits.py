"""Who trains, validates and tests: folds of whole patients made from a seed, or files that `make_splits` wrote.

Not here: how folds are made (pathray.data.splits), how split files are (pathray.data.split_files).
"""

from __future__ import annotations

from mil.cohort import Cohort
from mil.config import SplitsConfig
from pathray.data.split_files import read_split
from pathray.data.splits import SPLITS, Split, folds, holdout, stratified_folds
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage

RUN, FOLD = "run", "fold_"


def splits_of(cohort: Cohort, config: SplitsConfig) -> dict[str, Split]:
    """The splits by name: `fold_0` …, or `run` for a single one.

    UserError for a class of fewer patients than folds, and for what a file says that does not fit the cohort.
    """
    if config.folder:
        return {name: read_split(path, cohort) for name, path in split_files(config.folder).items()}
    if config.scheme == "holdout":
        train, val, test = config.fractions
        return {RUN: holdout(cohort, config.seed, train=train, val=val, test=test)}
    if config.scheme == "stratified_kfold" and cohort.classes:
        _check_classes(cohort, config.folds)
        made = stratified_folds(cohort, cohort.labels, config.seed, config.folds)
    else:
        made = folds(cohort, config.seed, None if config.scheme == "leave_one_group_out" else config.folds)
    return {f"{FOLD}{i}": split for i, split in enumerate(made)}


def split_files(folder: str) -> dict[str, str]:
    """Name and file of each split: the CSV itself, or fold_0.csv … of a folder, by number. MissingFile for none."""
    if folder.endswith(".csv"):
        return {RUN: folder}
    store = Storage.of(folder)
    names = [n.removesuffix(".csv") for n in store.list() if n.startswith(FOLD) and n.endswith(".csv")]
    if not names:
        raise MissingFile("no folds here", file=store.url, key="splits.folder", expected="fold_0.csv, fold_1.csv …")
    return {name: store.join(f"{name}.csv") for name in sorted(names, key=lambda n: (len(n), n))}


def check_parts(cohort: Cohort, splits: dict[str, Split]) -> None:
    """UserError for a split with nothing to train on or to test, or only one class to train on; and for a patient who
    tests twice."""
    tested: dict[str, str] = {}
    for name, split in splits.items():
        sizes = {part: int(split.rows(part).size) for part in SPLITS}
        if not sizes["train"] or not sizes["test"]:
            message, expected = "a part has no labelled slide", "slides of train and of test"
            raise UserError(message, file=cohort.file, key=name, found=sizes, expected=expected)
        if cohort.classes and len(found := set(cohort.labels[split.rows("train")].tolist())) < 2:
            message, expected = "the training slides are of one class", "two classes or more"
            raise UserError(message, file=cohort.file, key=name, found=found.pop(), expected=expected)
        for patient in sorted(set(cohort.groups[split.rows("test")].tolist())):
            if (first := tested.setdefault(patient, name)) != name:
                twice = f"{patient}, whom {first} tests, too"
                message, expected = "a patient tests twice", "folds of one make_splits alone"
                raise UserError(message, file=cohort.file, key=name, found=twice, expected=expected)


def _check_classes(cohort: Cohort, k: int) -> None:
    """UserError for a class of fewer patients than folds: some fold could not train on it, or not test it."""
    for name in cohort.classes:
        patients = len(set(cohort.groups[cohort.labels == name].tolist()))
        if patients < k:
            message, found = "a class has fewer patients than there are folds", f"{name}: {patients}, {k} folds"
            expected = f"splits.folds={patients}, or the class left out" if patients > 2 else "the class left out"
            raise UserError(message, file=cohort.file, key="splits.folds", found=found, expected=expected)
