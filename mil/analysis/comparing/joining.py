"""Joins the predictions of several models by slide: the same slides, classes, truth and patients, or a named error.

Not here: reading them (.reading), comparing (.comparison).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.judging.predictions import Predictions
from pathray.errors import UserError

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Joined:
    """N slides by rising id: names, patients `[N]`; truth `[N]`, class numbers or numbers. values: of each model
    `[S, N, K]`, S seeds, K `classes` (1 without). left_out: slides of each model that another lacks."""

    names: Strings
    patients: Strings
    truth: Floats
    classes: tuple[str, ...]
    values: Mapping[str, Floats]
    left_out: Mapping[str, int]
    files: Mapping[str, Sequence[str]]


def join(models: Mapping[str, Sequence[Predictions]], *, only_common: bool = False) -> Joined:
    """The predictions of all models on the same slides, in the first one's order of classes.

    UserError, naming both files, where slides differ (unless `only_common`, which leaves out what a model lacks),
    classes, the truth of a slide, or its patient; and where no slide is common.
    """
    tables = [one for each in models.values() for one in each]
    first = tables[0]
    for one in tables[1:]:
        _check_classes(first, one)
        if not only_common:
            _check_slides(first, one)
    common = sorted(set.intersection(*(set(one.names.tolist()) for one in tables)))
    if not common:
        found, expected = f"such as {tables[1].names[0]}", f"slides such as {first.names[0]}"
        raise UserError(
            "no slide is in all tables", file=tables[1].file, key="slide_id", found=found, expected=expected
        )
    rows = [_rows(one, common) for one in tables]
    truth, patients = _truth(tables, rows, first.classes), _patients(tables, rows, common)
    seen = {name: set[str]().union(*(one.names.tolist() for one in each)) for name, each in models.items()}
    values = iter([one.values[r][:, _order(one, first.classes)] for one, r in zip(tables, rows, strict=True)])
    return Joined(
        np.array(common), patients, truth, first.classes,
        {name: np.stack([next(values) for _ in each]) for name, each in models.items()},
        {name: len(own) - len(common) for name, own in seen.items()},
        {name: [one.file for one in each] for name, each in models.items()},
    )  # fmt: skip


def _check_classes(first: Predictions, one: Predictions) -> None:
    if set(one.classes) != set(first.classes):
        found, expected = _of(one.classes), f"{_of(first.classes)}, as in {first.file}"
        raise UserError("the models have different classes", file=one.file, found=found, expected=expected)


def _of(classes: Iterable[str]) -> str:
    return ", ".join(classes) or "numbers"


def _check_slides(first: Predictions, one: Predictions) -> None:
    a, b = set(first.names.tolist()), set(one.names.tolist())
    if a == b:
        return
    told = [f"{len(x)} {word} (such as {min(x)})" for x, word in ((a - b, "missing"), (b - a, "more")) if x]
    expected = f"the {len(a)} slides of {first.file}, or only_common=true"
    message = "the models predict different slides"
    raise UserError(message, file=one.file, key="slide_id", found=", ".join(told), expected=expected)


def _rows(one: Predictions, names: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {name: i for i, name in enumerate(one.names.tolist())}
    return np.array([place[name] for name in names], np.int64)


def _order(one: Predictions, classes: tuple[str, ...]) -> list[int]:
    return [one.classes.index(name) for name in classes] if classes else [0]


def _truth(tables: Sequence[Predictions], rows: Sequence[npt.NDArray[np.int64]], classes: tuple[str, ...]) -> Floats:
    """Of the first table. UserError for a slide of which another says something else."""
    told = [[one.labels[i] for i in r] for one, r in zip(tables, rows, strict=True)]
    for one, labels in zip(tables[1:], told[1:], strict=True):
        differ = [i for i, (x, y) in enumerate(zip(told[0], labels, strict=True)) if x != y]
        if differ:
            name, expected = str(tables[0].names[rows[0][differ[0]]]), f"{told[0][differ[0]]}, as in {tables[0].file}"
            message = f"{len(differ)} slides have another label"
            raise UserError(message, file=one.file, key=name, found=labels[differ[0]], expected=expected)
    if not classes:
        return tables[0].truth[rows[0]]
    return np.array([classes.index(label) for label in told[0]], np.float64)


def _patients(tables: Sequence[Predictions], rows: Sequence[npt.NDArray[np.int64]], names: Sequence[str]) -> Strings:
    """The patients that the tables know; without any, each slide is its own. UserError where two differ."""
    known = [
        (one.file, one.patients[r]) for one, r in zip(tables, rows, strict=True)
        if not np.array_equal(one.patients, one.names)
    ]  # fmt: skip
    if not known:
        return np.array(names)
    for file, patients in known[1:]:
        if (differ := np.flatnonzero(patients != known[0][1])).size:
            i = int(differ[0])
            expected = f"{known[0][1][i]}, as in {known[0][0]}"
            raise UserError(
                "a slide has another patient", file=file, key=names[i], found=str(patients[i]), expected=expected
            )
    return known[0][1]
