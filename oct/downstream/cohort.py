"""Joins labels with the volumes of an index: what is predicted (a volume or a person), from which volumes.

Everything that is left out is counted with its reason. Not here: folds (oct.downstream.folds), reading pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oct.indexing.index_file import VolumeIndex, read_index
from oct.indexing.manifest import person_column
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet
from pathray.urls import public

Strings = npt.NDArray[np.str_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Note = tuple[str, str]


@dataclass(frozen=True)
class Cohort:
    """Units U to predict, and the volumes V that they are predicted from. A GroupedTable whose groups are the persons.

    names `[U]`: paths below the root, or persons. groups `[U]`: persons. truth `[U]`: class numbers as floats, or
    numbers. classes: names of the classes, sorted; none for a regression. volumes: V rows of the index, by unit. unit
    `[V]`: whose volume it is. notes: what was left out, and why.
    """

    file: str
    root: str
    names: Strings
    groups: Strings
    truth: Floats
    classes: tuple[str, ...]
    volumes: list[dict[str, Any]]
    unit: Ints
    lines: Sequence[int]
    per_person: bool
    notes: list[Note] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """Digest of all rows with their labels, independent of their order and of where the files are."""
        rows = sorted(zip(self.names.tolist(), self.groups.tolist(), self.truth.tolist(), strict=True))
        return hashlib.sha256(json.dumps([rows, self.classes]).encode()).hexdigest()

    @property
    def persons(self) -> int:
        return len(set(self.groups.tolist()))

    def row_of(self, index: int) -> int:
        return self.lines[index]

    def only(self, readable: npt.NDArray[np.bool_]) -> Cohort:
        """Without the volumes that could not be read `[V]`, and without units that have no others."""
        kept = np.unique(self.unit[readable])
        number = np.full(len(self.names), -1)
        number[kept] = np.arange(len(kept))
        volumes = [row for row, is_there in zip(self.volumes, readable, strict=True) if is_there]
        return Cohort(
            self.file, self.root, self.names[kept], self.groups[kept], self.truth[kept], self.classes, volumes,
            number[self.unit[readable]], [self.lines[i] for i in kept], self.per_person, self.notes,
        )  # fmt: skip

    def __str__(self) -> str:
        what = "persons" if self.per_person else "volumes"
        shares = Counter(self.truth.astype(int).tolist()) if self.classes else {}
        classes = ", ".join(f"{name} {shares[k]}" for k, name in enumerate(self.classes))
        found = classes or f"{self.truth.mean():.4g} ± {self.truth.std():.3g}"
        return f"{len(self.names)} labelled {what} of {self.persons} persons, {len(self.volumes)} volumes: {found}"


def read_cohort(index_path: str, labels_path: str, label: str, task: str, root: str | None = None) -> Cohort:
    """The labelled volumes. The table has a column `path` (labels of volumes), or person_id (labels of persons).

    MissingFile; UserError for a missing column, a label that is no number (of a regression), two labels for one unit,
    labels that match no volume of the index, and for labels that are all equal.
    """
    index, sheet = read_index(index_path), read_sheet(labels_path, "table of labels")
    column, keys = _units(sheet, label)
    per_person, cells = column != "path", sheet.texts(label, may_be_empty=True)
    given, notes = _labels(sheet, column, label, keys, cells)
    found = _match(index, given, per_person, notes)
    if not found:
        message, expected = "no label is of a volume in the index", f"values of {public(index_path)}"
        raise UserError(message, file=sheet.file, key=column, found=keys[0], expected=expected)
    names = sorted(found)
    rows = [given[name] for name in names]
    truth, classes = _truth(sheet, label, [cells[i] for i in rows], rows, task)
    volumes = [(u, volume) for u, name in enumerate(names) for volume in found[name]]
    return Cohort(
        sheet.file, root or index.root, np.array(names, np.str_), np.array([found[n][0]["person"] for n in names]),
        truth, classes, [volume for _, volume in volumes], np.array([u for u, _ in volumes], np.int64),
        [sheet.lines[i] for i in rows], per_person, notes,
    )  # fmt: skip


def read_labels(path: str, label: str) -> tuple[dict[str, str], bool]:
    """The labels of a table by unit, and whether the units are persons: else they are paths below the root.

    MissingFile; UserError for a missing column, two labels for one unit, and a table without labels.
    """
    sheet = read_sheet(path, "table of labels")
    column, keys = _units(sheet, label)
    cells = sheet.texts(label, may_be_empty=True)
    given, _ = _labels(sheet, column, label, keys, cells)
    return {key: cells[row] for key, row in given.items()}, column != "path"


def _units(sheet: Sheet, label: str) -> tuple[str, list[str]]:
    """The column that names the units of a table of labels, and the unit of each row."""
    sheet.need(label)
    if "path" in sheet.names:
        return "path", [key.lstrip("/").removeprefix("dataset/") for key in sheet.texts("path")]
    column = person_column(sheet)
    keys = sheet.texts(column)
    sheet.check_spelling(column, "persons")
    return column, keys


def _labels(
    sheet: Sheet, column: str, label: str, keys: Sequence[str], cells: Sequence[str]
) -> tuple[dict[str, int], list[Note]]:
    """The row of each unit that has a label, and notes of those without. UserError for two labels of one unit."""
    given: dict[str, int] = {}
    notes: list[Note] = []
    for i, (key, cell) in enumerate(zip(keys, cells, strict=True)):
        if not cell:
            notes.append((key, "no label"))
        elif cells[first := given.setdefault(key, i)] != cell:
            expected = f"{cells[first]}, as in row {sheet.lines[first]}"
            raise sheet.cell_error(f"two labels for one {column}: {key}", i, label, expected)
    if not given:
        raise UserError("no row has a label", file=sheet.file, key=label, found="empty cells", expected="labels")
    return given, notes


def _match(
    index: VolumeIndex, given: dict[str, int], per_person: bool, notes: list[Note]
) -> dict[str, list[dict[str, Any]]]:
    """The accepted volumes of each labelled unit. Adds a note for every label without one."""
    found: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for row in index.table.to_pylist():
        key = row["person" if per_person else "path"]
        if key not in given:
            notes += [] if row["exclusion"] else [(row["path"], "a volume without a label")]
        elif row["exclusion"]:
            left_out[key] = row["exclusion"]
        else:
            found.setdefault(key, []).append(row)
    for key in given:
        if key not in found:
            known = f"a label of a volume that the index excludes: {left_out[key]}" if key in left_out else ""
            what = "person" if per_person else "volume"
            notes.append((key, known or f"a label of a {what} that the index does not have"))
    return {key: sorted(volumes, key=lambda row: str(row["path"])) for key, volumes in found.items()}


def _truth(
    sheet: Sheet, label: str, cells: Sequence[str], rows: Sequence[int], task: str
) -> tuple[Floats, tuple[str, ...]]:
    """What is to be predicted, and the names of the classes. UserError for labels that cannot be learned."""
    if task == "regression":
        truth = sheet.only(rows).numbers(label)
        if np.ptp(truth) == 0:
            found = f"{cells[0]} in all {len(rows)} rows"
            raise UserError(
                "all labels are equal", file=sheet.file, key=label, found=found, expected="numbers that vary"
            )
        return truth, ()
    classes = tuple(sorted(set(cells)))
    if len(classes) < 2:
        found, expected = f"{classes[0]} in all {len(rows)} rows", "two classes or more"
        raise UserError("all labels are equal", file=sheet.file, key=label, found=found, expected=expected)
    if len(classes) > max(2, len(cells) // 2):
        found, expected = f"{len(classes)} classes in {len(cells)} rows", "classes, or data.task=regression for numbers"
        raise UserError("too many classes to learn", file=sheet.file, key=label, found=found, expected=expected)
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[cell] for cell in cells], np.float64), classes
