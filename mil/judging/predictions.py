"""Tables of predictions: a row per slide with the probability of each class by its name, or a number.

Columns: slide_id, patient_id, label (where the truth is known), fold (out-of-fold predictions), and `prob_<class>` or
`predicted`; of survival time, event and `risk`. Names carry the classes, so no order of columns changes what a
probability is of. Not here: predicting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mil.target import REGRESSION, SURVIVAL
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet

PROBABILITY, NUMBER, RISK = "prob_", "predicted", "risk"
TIME, EVENT = "time", "event"
Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Predictions:
    """names, patients `[N]`; truth `[N]`: class numbers, numbers, or times; values `[N, K]` of `classes`, or `[N, 1]`.
    events `[N]` of survival: 1 observed, 0 censored. folds `[N]`: whose model made each, where several did."""

    names: Strings
    patients: Strings
    truth: Floats
    values: Floats
    classes: tuple[str, ...]
    file: str = ""
    events: Floats | None = None
    folds: Strings | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> list[str]:
        return [self.classes[int(t)] for t in self.truth] if self.classes else [f"{t:g}" for t in self.truth]


def columns_of(values: Floats, classes: tuple[str, ...], task: str = REGRESSION) -> dict[str, Any]:
    """The columns of values `[N, K]`, or `[N, 1]` without classes."""
    if not classes:
        return {RISK if task == SURVIVAL else NUMBER: values[:, 0]}
    return {f"{PROBABILITY}{name}": values[:, k] for k, name in enumerate(classes)}


def read_predictions(path: str, *, label: str = "label", patient: str = "patient_id") -> Predictions:
    """A parquet or CSV table with truth and predictions. Without `patient` in it, every slide is its own.

    MissingFile; UserError, naming row and column, for missing columns, a label that is no class, a slide that is there
    twice, and values that are no probabilities or numbers.
    """
    sheet = read_sheet(path, "table of predictions")
    if RISK in sheet.names:
        return _survival(sheet, patient)
    sheet.need("slide_id", label)
    names = sheet.texts("slide_id")
    _check_once(sheet, names)
    patients = sheet.texts(patient) if patient in sheet.names else names
    classes = tuple(name.removeprefix(PROBABILITY) for name in sheet.names if name.startswith(PROBABILITY))
    if not classes:
        sheet.need(NUMBER)
        values = sheet.numbers(NUMBER)[:, None]
        return Predictions(np.array(names), np.array(patients), sheet.numbers(label), values, (), path)
    values = np.stack([sheet.numbers(f"{PROBABILITY}{name}", "not a probability") for name in classes], axis=1)
    number = {name: k for k, name in enumerate(classes)}
    cells = sheet.texts(label)
    for i, cell in enumerate(cells):
        if cell not in number:
            raise sheet.cell_error("a label without a column of probabilities", i, label, " | ".join(classes))
    _check_probabilities(sheet, classes, values)
    truth = np.array([number[cell] for cell in cells], np.float64)
    return Predictions(np.array(names), np.array(patients), truth, values, classes, path)


def of_table(table: pa.Table, classes: tuple[str, ...]) -> Predictions:
    """The predictions of a table that this package wrote, with the truth in it."""
    names, patients = (np.array(table[key].to_pylist(), np.str_) for key in ("slide_id", "patient_id"))
    folds = np.array(table["fold"].to_pylist(), np.str_) if "fold" in table.column_names else None
    survives = RISK in table.column_names
    keys = [f"{PROBABILITY}{name}" for name in classes] or [RISK if survives else NUMBER]
    values = np.stack([table[key].to_numpy() for key in keys], axis=1)
    number = {name: k for k, name in enumerate(classes)}
    labels = table[TIME if survives else "label"].to_pylist()
    truth = np.array([number[str(label)] if classes else label for label in labels], np.float64)
    events = np.asarray(table[EVENT].to_numpy(), np.float64) if survives else None
    return Predictions(names, patients, truth, values, classes, events=events, folds=folds)


def _survival(sheet: Sheet, patient: str) -> Predictions:
    sheet.need("slide_id", TIME, EVENT)
    names = sheet.texts("slide_id")
    _check_once(sheet, names)
    time, event = sheet.numbers(TIME), sheet.numbers(EVENT)
    for key, bad, expected in (
        (TIME, time < 0, "a time from 0"),
        (EVENT, ~np.isin(event, (0, 1)), "1 (observed) or 0 (censored)"),
    ):
        if bad.any():
            raise sheet.cell_error("not an outcome of survival", int(np.flatnonzero(bad)[0]), key, expected)
    patients = sheet.texts(patient) if patient in sheet.names else names
    folds = np.array(sheet.texts("fold")) if "fold" in sheet.names else None
    values = sheet.numbers(RISK)[:, None]
    return Predictions(np.array(names), np.array(patients), time, values, (), sheet.file, event, folds)


def _check_once(sheet: Sheet, names: list[str]) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if (other := first.setdefault(name, i)) != i:
            expected = f"each slide once; it is in row {sheet.lines[other]}, too"
            raise sheet.cell_error("a slide is there twice", i, "slide_id", expected)


def _check_probabilities(sheet: Sheet, classes: tuple[str, ...], values: Floats) -> None:
    bad = np.argwhere((values < 0) | (values > 1))
    if len(bad):
        i, k = (int(x) for x in bad[0])
        raise sheet.cell_error("not a probability", i, f"{PROBABILITY}{classes[k]}", "a number from 0 to 1")
    sums = values.sum(axis=1)
    if (off := np.flatnonzero(np.abs(sums - 1) > 1e-3)).size:
        row, key = sheet.lines[int(off[0])], f"{PROBABILITY}*"
        raise UserError(
            "probabilities do not add up", file=sheet.file, row=row, key=key, found=round(float(sums[off[0]]), 4),
            expected="a sum of 1",
        )  # fmt: skip
