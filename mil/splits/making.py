"""Who trains, validates and tests: splits of whole patients made from a seed, or read from files.

Not here: how splits are made (pathray.data.splits, pathray.data.repeated_splits), the files (mil.splits.files),
duplicates of a bag in two parts (mil.splits.leakage).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mil.cohort import Cohort
from mil.config import SplitsConfig
from mil.splits.files import read_split, split_files
from mil.splits.row_filter import rows_where
from pathray.data.repeated_splits import MONTE_CARLO, NESTED, SomeRows, monte_carlo, nested_folds
from pathray.data.splits import SPLITS, Split, folds, holdout, stratified_folds
from pathray.errors import UserError
from pathray.files.sheet import read_sheet

log = logging.getLogger(__name__)
RUN, FOLD, REPEAT = "run", "fold_", "repeat_"
OUTER = re.compile(r"(outer_\d+)_inner_\d+")


def splits_of(cohort: Cohort, config: SplitsConfig) -> dict[str, Split]:
    """The splits by name: `fold_0` …, `repeat_0` … (mccv), `outer_0_inner_0` … (nested), or `run` for a single one.

    UserError for a class of fewer patients than folds, a filter that is not one, a patient on both sides of it, and
    for what a file says that does not fit the cohort.
    """
    if config.folder:
        return {name: read_split(path, cohort) for name, path in split_files(config.folder).items()}
    train, val, test = config.fractions
    if config.scheme == "holdout":
        return {RUN: holdout(cohort, config.seed, train=train, val=val, test=test)}
    if config.scheme == "custom_holdout":
        return {RUN: _custom_holdout(cohort, config)}
    if config.scheme == "nested":
        _check_classes(cohort, config.folds)
        outer = nested_folds(cohort, cohort.labels, config.seed, config.folds, config.inner_folds)
        return {f"outer_{i}_inner_{j}": one for i, inside in enumerate(outer) for j, one in enumerate(inside)}
    if config.scheme == "mccv":
        made = monte_carlo(cohort, cohort.labels, config.seed, config.repeats, train=train, val=val, test=test)
        return {f"{REPEAT}{i}": split for i, split in enumerate(made)}
    return {f"{FOLD}{i}": split for i, split in enumerate(_folds(cohort, config))}


def outer_of(name: str) -> str:
    """The outer fold of a nested split; any other split's own name.

    >>> outer_of("outer_2_inner_0"), outer_of("fold_3")
    ('outer_2', 'fold_3')
    """
    match = OUTER.fullmatch(name)
    return match[1] if match else name


def is_repeated(splits: Mapping[str, Split]) -> bool:
    """Whether a slide may be tested by several of the splits that are not inner splits of one outer fold."""
    return all(split.meta.get("kind") == MONTE_CARLO for split in splits.values())


def check_parts(cohort: Cohort, splits: Mapping[str, Split]) -> None:
    """UserError for a split with nothing to train on or to test, or only one class to train on; for a patient who is
    tested twice, unless by repeats of a Monte-Carlo cross-validation; and for inner splits that do not test the same
    slides."""
    tested: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, split in splits.items():
        _check_split(cohort, name, split)
        _check_inner(cohort, splits, first.setdefault(outer_of(name), name), name)
        for patient in [] if is_repeated(splits) else sorted(set(cohort.groups[split.rows("test")].tolist())):
            earlier = tested.setdefault(patient, name)
            if outer_of(earlier) != outer_of(name):
                twice = f"{patient}, whom {earlier} tests, too"
                message, expected = "a patient tests twice", "folds of one make_splits alone"
                raise UserError(message, file=cohort.file, key=name, found=twice, expected=expected)


def _check_split(cohort: Cohort, name: str, split: Split) -> None:
    sizes = {part: int(split.rows(part).size) for part in SPLITS}
    needed = SPLITS if split.meta.get("kind") == NESTED else ("train", "test")
    if not all(sizes[part] for part in needed):
        message, expected = "a part has no labelled slide", f"slides of {' and of '.join(needed)}"
        raise UserError(message, file=cohort.file, key=name, found=sizes, expected=expected)
    if cohort.classes and len(found := set(cohort.labels[split.rows("train")].tolist())) < 2:
        message, expected = "the training slides are of one class", "two classes or more"
        raise UserError(message, file=cohort.file, key=name, found=found.pop(), expected=expected)
    for part in ("val", "test"):
        lacking = set(cohort.classes) - set(cohort.labels[split.rows(part)].tolist())
        if lacking and sizes[part]:
            log.warning("%s: no slide of %s has class %s", name, part, ", ".join(sorted(lacking)))


def _check_inner(cohort: Cohort, splits: Mapping[str, Split], first: str, name: str) -> None:
    """UserError for an inner split that tests other slides than the `first` of its outer fold."""
    differ = np.flatnonzero((splits[first].of == "test") != (splits[name].of == "test"))
    if differ.size:
        slide = cohort.names[differ[0]]
        message, found = (
            "inner splits of one outer fold test different slides",
            f"{slide}, in one of {first} and {name}",
        )
        raise UserError(message, file=cohort.file, key=name, found=found, expected="folds of one make_splits alone")


def _folds(cohort: Cohort, config: SplitsConfig) -> list[Split]:
    if config.scheme == "stratified_kfold" and cohort.classes:
        _check_classes(cohort, config.folds)
        return stratified_folds(cohort, cohort.labels, config.seed, config.folds)
    return folds(cohort, config.seed, None if config.scheme == "leave_one_group_out" else config.folds)


def _custom_holdout(cohort: Cohort, config: SplitsConfig) -> Split:
    """The rows that the filter chooses test; the others train and validate in the proportion of `fractions`."""
    sheet = read_sheet(cohort.file, "table of slides")
    place = {line: i for i, line in enumerate(sheet.lines)}
    tested = rows_where(sheet.only([place[line] for line in cohort.lines]), str(config.filter))
    _check_whole_patients(cohort, tested)
    of = np.full(len(cohort.names), "test", "<U5")
    train, val, _ = config.fractions
    rest, val = np.flatnonzero(~tested), val / (train + val)
    of[rest] = holdout(SomeRows(cohort, rest), config.seed, train=1 - val, val=val, test=0.0).of
    meta = {"kind": "custom-holdout", "filter": config.filter, "seed": config.seed, "val": val, "table": cohort.hash}
    return Split(of, meta)


def _check_whole_patients(cohort: Cohort, tested: npt.NDArray[np.bool_]) -> None:
    """UserError for a patient with slides that the filter chooses and others that it does not."""
    first: dict[str, int] = {}
    for i, patient in enumerate(cohort.groups.tolist()):
        other = first.setdefault(patient, i)
        if tested[other] != tested[i]:
            chosen, left = (i, other) if tested[i] else (other, i)
            rows = f"{cohort.names[chosen]} is chosen, {cohort.names[left]} (row {cohort.row_of(left)}) is not"
            message, expected = "a patient is on both sides of the filter", "an expression that chooses whole patients"
            row, found = cohort.row_of(chosen), f"{patient}: {rows}"
            raise UserError(message, file=cohort.file, row=row, key="splits.filter", found=found, expected=expected)


def _check_classes(cohort: Cohort, k: int) -> None:
    """UserError for a class of fewer patients than folds: some fold could not train on it, or not test it."""
    for name in cohort.classes:
        patients = len(set(cohort.groups[cohort.labels == name].tolist()))
        if patients < k:
            message, found = "a class has fewer patients than there are folds", f"{name}: {patients}, {k} folds"
            expected = f"splits.folds={patients}, or the class left out" if patients > 2 else "the class left out"
            raise UserError(message, file=cohort.file, key="splits.folds", found=found, expected=expected)
