"""Reads what is predicted from a table's columns: classes, grades, numbers, or times with events.

Not here: which rows count (mil.cohort).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.target import CLASSES, ORDINAL, REGRESSION, SURVIVAL
from pathray.errors import UserError
from pathray.files.sheet import Sheet

Floats = npt.NDArray[np.float64]
EVENTS = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Outcome:
    """What is predicted: `task`, and its columns. `label`: classes, grades or numbers; in survival `time`, and `event`
    (1 observed, 0 censored). `label_map` gives the numbers 0 … K−1 of classes; of grades it is their order."""

    label: str = "label"
    task: str = CLASSES
    label_map: Mapping[str, int] | None = None
    time: str | None = None
    event: str | None = None

    def __post_init__(self) -> None:
        for key in ("time", "event"):
            given = getattr(self, key)
            if (self.task == SURVIVAL) != bool(given):
                message = f"survival needs the column of {key}s" if not given else f"data.{key} is of survival alone"
                expected = f"data.{key}=COLUMN" if not given else f"data.task={SURVIVAL}, or data.{key} left out"
                raise UserError(message, key=f"data.{key}", found=given, expected=expected)

    @property
    def columns(self) -> tuple[str, ...]:
        return (str(self.time), str(self.event)) if self.task == SURVIVAL else (self.label,)

    @property
    def name(self) -> str:
        """In words, for pages and models."""
        return " and ".join(self.columns)


@dataclass(frozen=True)
class Truth:
    """`values` `[S]`: class numbers, numbers, or times; `classes`: their names; `events` `[S]` of survival."""

    values: Floats
    classes: tuple[str, ...] = ()
    events: Floats | None = None


def read_truth(sheet: Sheet, outcome: Outcome, rows: Sequence[int]) -> Truth:
    """The truth of these rows, none of whose cells is empty.

    UserError, naming row and column: a label that is not in the map or no number, a time below 0, an event that is
    neither 0 nor 1, no event at all, labels that are all equal, and more classes than rows can teach.
    """
    if outcome.task == SURVIVAL:
        return _times(sheet, outcome, rows)
    if outcome.task == REGRESSION:
        numbers = sheet.only(rows).numbers(outcome.label)
        if np.ptp(numbers) == 0:
            found = f"{numbers[0]:g} in all {len(rows)} rows"
            raise _equal(sheet, outcome.label, found, "varying numbers")
        return Truth(numbers)
    return _classes(sheet, outcome, rows)


def _times(sheet: Sheet, outcome: Outcome, rows: Sequence[int]) -> Truth:
    time, event = outcome.columns
    times, cells = sheet.only(rows).numbers(time), sheet.texts(event, may_be_empty=True)
    for i, value in zip(rows, times.tolist(), strict=True):
        if value < 0:
            raise sheet.cell_error("a time below 0", i, time, "a time from 0")
        if cells[i].lower() not in EVENTS:
            raise sheet.cell_error("neither observed nor censored", i, event, "1 (observed) or 0 (censored)")
    events = np.array([EVENTS[cells[i].lower()] for i in rows])
    if not events.any():
        raise _equal(sheet, event, f"0 in all {len(rows)} rows", "some events; without one there is nothing to learn")
    return Truth(times, events=events)


def _classes(sheet: Sheet, outcome: Outcome, rows: Sequence[int]) -> Truth:
    label, all_cells = outcome.label, sheet.texts(outcome.label, may_be_empty=True)
    cells = [all_cells[i] for i in rows]
    classes = _names(cells, outcome, sheet.file)
    number = {name: k for k, name in enumerate(classes)}
    for i, cell in zip(rows, cells, strict=True):
        if cell not in number:
            raise sheet.cell_error("a label that is no class", i, label, " | ".join(classes))
    if len(set(cells)) < 2:
        raise _equal(sheet, label, f"{cells[0]} in all {len(rows)} rows", "two classes or more")
    if not outcome.label_map and len(classes) > max(2, len(cells) // 2):
        found, expected = f"{len(classes)} classes in {len(cells)} rows", "classes, or data.task=regression for numbers"
        raise UserError("too many classes to learn", file=sheet.file, key=label, found=found, expected=expected)
    return Truth(np.array([number[cell] for cell in cells], np.float64), classes)


def _names(cells: Sequence[str], outcome: Outcome, file: str) -> tuple[str, ...]:
    """The classes in the order of their numbers; grades without a map must be numbers, which have an order."""
    if outcome.label_map:
        return _by_number(outcome.label_map, file)
    names = sorted(set(cells))
    if outcome.task == ORDINAL:
        if words := [name for name in names if not _is_number(name)]:
            message, expected = "grades need an order", "data.label_map={lowest: 0, next: 1, …}, or numbers as grades"
            raise UserError(message, file=file, key=outcome.label, found=words[0], expected=expected)
        names = sorted(names, key=float)
    return tuple(names)


def _by_number(given: Mapping[str, int], file: str) -> tuple[str, ...]:
    """The names by their numbers. UserError unless these are 0 … K−1, each once."""
    if sorted(given.values()) != list(range(len(given))):
        found, expected = dict(given), f"the numbers 0 to {len(given) - 1}, each once"
        raise UserError("not the numbers of classes", file=file, key="data.label_map", found=found, expected=expected)
    return tuple(sorted((str(name) for name in given), key=lambda name: given[name]))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _equal(sheet: Sheet, key: str, found: str, expected: str) -> UserError:
    return UserError("all labels are equal", file=sheet.file, key=key, found=found, expected=expected)
