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
from mil.target import CLASSES, SURVIVAL
from mil.truth import Outcome, Truth, read_truth
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet

Strings = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """Labelled slides S of a store, sorted by id. A GroupedTable (pathray.data.splits) whose groups are patients.

    names `[S]`: slide ids. groups `[S]`: patients. truth `[S]`: class numbers, numbers, or times of survival. classes:
    their names in the order of the outputs, if any. label: the column. slides `[S]`: rows of the store. events `[S]`: 1
    observed, 0 censored, of survival. left_out: slides and why.
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
    task: str = CLASSES
    events: Floats | None = None

    @property
    def hash(self) -> str:
        """Digest of all rows, of their labels and of the store's content, independent of the table's order."""
        events = [] if self.events is None else [self.events.tolist()]
        rows = sorted(zip(self.names.tolist(), self.groups.tolist(), self.truth.tolist(), *events, strict=True))
        return hashlib.sha256(json.dumps([rows, self.classes, self.store_hash]).encode()).hexdigest()

    @property
    def labels(self) -> Strings:
        """The name of each slide's class `[S]`; "event" or "censored" in survival, "" in a regression."""
        if self.events is not None:
            return np.where(self.events > 0, "event", "censored")
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
        what = what if self.events is None else f"{int(self.events.sum())} with an event"
        return f"{len(self.names)} labelled slides of {self.patients} patients: {what}"


def read_cohort(
    csv: str,
    store: Store,
    *,
    label: str = "label",
    task: str = CLASSES,
    label_map: Mapping[str, int] | None = None,
    time: str | None = None,
    event: str | None = None,
    slide_column: str = "slide_id",
    patient_column: str = "patient_id",
) -> Cohort:
    """The labelled slides of `store`. `label_map` gives the numbers 0 … K−1 of the classes, whatever its order; without
    it they are sorted by name. Survival has the columns `time` and `event` instead of `label`. An empty
    `patient_column` makes each slide a patient.

    MissingFile; UserError, naming row and column, for a missing column, a slide with two labels or two patients, a
    patient in two spellings or with two survival times, for a table without a slide of the store, and as in
    mil.truth.read_truth.
    """
    outcome = Outcome(label, task, label_map, time, event)
    sheet = read_sheet(csv, "table of slides")
    sheet.need(slide_column, *outcome.columns, *([patient_column] if patient_column else []))
    names, cells = sheet.texts(slide_column), {key: sheet.texts(key, may_be_empty=True) for key in outcome.columns}
    groups = sheet.texts(patient_column) if patient_column else names
    sheet.check_spelling(patient_column or slide_column, "patients")
    rows = _first_rows(sheet, slide_column, names, {**cells, patient_column: groups})
    kept, left_out = list[int](), list[tuple[str, str]]()
    for name, i in sorted(rows.items()):
        if not all(column[i] for column in cells.values()):
            left_out.append((name, "no label"))
        elif name not in store.index:
            left_out.append((name, "not in the store"))
        else:
            kept.append(i)
    left_out += [(name, "not in the table") for name in store.ids if name not in rows]
    if not kept:
        found, expected = f"{names[0]} and {len(rows) - 1} more", f"slides such as {store.ids[0]}"
        raise UserError("no labelled slide is in the store", file=csv, key=slide_column, found=found, expected=expected)
    truth = read_truth(sheet, outcome, kept)
    if task == SURVIVAL:
        _check_patients(sheet, outcome, kept, groups, truth)
    return Cohort(
        csv, np.array([names[i] for i in kept]), np.array([groups[i] for i in kept]), truth.values, truth.classes,
        np.array([store.index[names[i]] for i in kept], np.int64), [sheet.lines[i] for i in kept],
        outcome.name, str(store.meta["sha256"]), left_out, task, truth.events,
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


def _check_patients(sheet: Sheet, outcome: Outcome, rows: Sequence[int], groups: Sequence[str], truth: Truth) -> None:
    """UserError for a patient whose slides have different times or events: he lives once."""
    assert truth.events is not None
    first: dict[str, int] = {}
    for k, i in enumerate(rows):
        other = first.setdefault(groups[i], k)
        for key, values in zip(outcome.columns, (truth.values, truth.events), strict=True):
            if values[other] != values[k]:
                expected = f"{values[other]:g}, as in row {sheet.lines[rows[other]]}"
                raise sheet.cell_error(f"patient {groups[i]} has two values", i, key, expected)
