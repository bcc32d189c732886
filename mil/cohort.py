"""Joins a table of labels with the slides of a store: what is predicted, from which slides, of which patients.

Everything that is left out is counted with its reason. Not here: splits (mil.splits), features (mil.store).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mil.store.reading import Store
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet

CLASSES, REGRESSION = "classification", "regression"
TASKS = (CLASSES, REGRESSION)
Strings = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """Labelled slides S of a store, sorted by id. A GroupedTable (pathray.data.splits) whose groups are patients.

    names `[S]`: slide ids. groups `[S]`: patients. truth `[S]`: class numbers, or numbers. classes: their names in the
    order of the outputs; none for a regression. label: the column. slides `[S]`: rows of the store. left_out: slides
    and why.
    """

    file: str
    names: Strings
    groups: Strings
    truth: Floats
    classes: tuple[str, ...]
    slides: Ints
    lines: Sequence[int]
    label: str
    store_hash: str
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """Digest of all rows, of their labels and of the store's content, independent of the table's order."""
        rows = sorted(zip(self.names.tolist(), self.groups.tolist(), self.truth.tolist(), strict=True))
        return hashlib.sha256(json.dumps([rows, self.classes, self.store_hash]).encode()).hexdigest()

    @property
    def labels(self) -> Strings:
        """The name of each slide's class `[S]`; "" in a regression."""
        named = [self.classes[int(t)] if self.classes else "" for t in self.truth]
        return np.array(named, np.str_)

    @property
    def patients(self) -> int:
        return len(set(self.groups.tolist()))

    def row_of(self, index: int) -> int:
        return self.lines[index]

    def __str__(self) -> str:
        shares = Counter(self.labels.tolist())
        classes = ", ".join(f"{name} {shares[name]}" for name in self.classes)
        what = classes or f"{self.truth.mean():.4g} ± {self.truth.std():.3g}"
        return f"{len(self.names)} labelled slides of {self.patients} patients: {what}"


def read_cohort(
    csv: str,
    store: Store,
    *,
    label: str,
    task: str = CLASSES,
    label_map: Mapping[str, int] | None = None,
    slide_column: str = "slide_id",
    patient_column: str = "patient_id",
) -> Cohort:
    """The labelled slides of `store`. `label_map` gives the numbers 0 … K−1 of the classes, whatever its order; without
    it they are sorted by name. An empty `patient_column` makes each slide a patient.

    MissingFile; UserError, naming row and column, for a missing column, a slide with two labels or two patients, a
    patient in two spellings, a label that is not in the map or no number, labels that are all equal, and for a table
    without a slide of the store.
    """
    sheet = read_sheet(csv, "table of slides")
    sheet.need(slide_column, label, *([patient_column] if patient_column else []))
    names, cells = sheet.texts(slide_column), sheet.texts(label, may_be_empty=True)
    groups = sheet.texts(patient_column) if patient_column else names
    sheet.check_spelling(patient_column or slide_column, "patients")
    rows = _first_rows(sheet, slide_column, names, {label: cells, patient_column: groups})
    kept, left_out = list[int](), list[tuple[str, str]]()
    for name, i in sorted(rows.items()):
        reason = "no label" if not cells[i] else "" if name in store.index else "not in the store"
        if reason:
            left_out.append((name, reason))
        else:
            kept.append(i)
    left_out += [(name, "not in the table") for name in store.ids if name not in rows]
    if not kept:
        found, expected = f"{names[0]} and {len(rows) - 1} more", f"slides such as {store.ids[0]}"
        raise UserError("no labelled slide is in the store", file=csv, key=slide_column, found=found, expected=expected)
    truth, classes = _truth(sheet, label, [cells[i] for i in kept], kept, task, label_map)
    return Cohort(
        csv, np.array([names[i] for i in kept]), np.array([groups[i] for i in kept]), truth, classes,
        np.array([store.index[names[i]] for i in kept], np.int64), [sheet.lines[i] for i in kept],
        label, str(store.meta["sha256"]), left_out,
    )  # fmt: skip


def _first_rows(sheet: Sheet, column: str, names: Sequence[str], same: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The row of each slide. UserError for a slide in two rows that differ in one of the columns `same`."""
    rows: dict[str, int] = {}
    for i, name in enumerate(names):
        first = rows.setdefault(name, i)
        for key, cells in same.items():
            if cells[first] != cells[i]:
                expected = f"{cells[first]}, as in row {sheet.lines[first]}"
                raise sheet.cell_error(f"slide {name} has two values", i, key, expected)
    return rows


def _truth(
    sheet: Sheet, label: str, cells: Sequence[str], rows: Sequence[int], task: str, given: Mapping[str, int] | None
) -> tuple[Floats, tuple[str, ...]]:
    """What is predicted, and the names of the classes."""
    if task == REGRESSION:
        truth = sheet.only(rows).numbers(label)
        if np.ptp(truth) == 0:
            found = f"{cells[0]} in all {len(rows)} rows"
            raise UserError("all labels are equal", file=sheet.file, key=label, found=found, expected="varying numbers")
        return truth, ()
    classes = _classes(given, sheet.file) if given else tuple(sorted(set(cells)))
    number = {name: k for k, name in enumerate(classes)}
    for i, cell in zip(rows, cells, strict=True):
        if cell not in number:
            raise sheet.cell_error("a label that is no class", i, label, " | ".join(classes))
    if len(set(cells)) < 2:
        found, expected = f"{cells[0]} in all {len(rows)} rows", "two classes or more"
        raise UserError("all labels are equal", file=sheet.file, key=label, found=found, expected=expected)
    if not given and len(classes) > max(2, len(cells) // 2):
        found, expected = f"{len(classes)} classes in {len(cells)} rows", "classes, or data.task=regression for numbers"
        raise UserError("too many classes to learn", file=sheet.file, key=label, found=found, expected=expected)
    return np.array([number[cell] for cell in cells], np.float64), classes


def _classes(given: Mapping[str, int], file: str) -> tuple[str, ...]:
    """The names by their numbers. UserError unless these are 0 … K−1, each once."""
    if sorted(given.values()) != list(range(len(given))):
        found, expected = dict(given), f"the numbers 0 to {len(given) - 1}, each once"
        raise UserError("not the numbers of classes", file=file, key="data.label_map", found=found, expected=expected)
    return tuple(sorted((str(name) for name in given), key=lambda name: given[name]))
