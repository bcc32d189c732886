"""Puts the predictions of all experiments and seeds on the same slides, in the same order, with the same classes.

Not here: reading tables (mil.comparison.experiments), comparing (mil.comparison.comparing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mil.comparison.experiments import Experiment
from mil.judging.predictions import Predictions
from pathray.errors import UserError

SHOWN = 3


@dataclass(frozen=True)
class Joined:
    """Experiments whose predictions have the same N slides in the same order; `left_out`: slides of each that are not
    in all."""

    experiments: tuple[Experiment, ...]
    left_out: dict[str, list[str]]

    @property
    def first(self) -> Predictions:
        return self.experiments[0].first


def join_slides(experiments: Sequence[Experiment], only_common: bool = False) -> Joined:
    """Experiments on their shared slides, sorted by name.

    Classes take the order of the first table, so the last of two stays the positive one. A table without patients takes
    those of the others. With survival, `folds` become those that are equal in every table, so pairs of patients are
    the same for all. UserError for other kinds of predictions, classes, slides (unless `only_common`), labels, outcomes
    or patients; all name file and slide.
    """
    tables = [one for experiment in experiments for one in experiment.seeds]
    first = tables[0]
    for one in tables[1:]:
        _check_kind(first, one)
    names, left_out = _shared(experiments, only_common)
    aligned = [_take(one, names, first.classes) for one in tables]
    for one in aligned[1:]:
        _check_truth(aligned[0], one)
    patients = _patients(aligned)
    folds = _shared_folds(aligned)
    settled = iter([replace(one, patients=patients, folds=folds) for one in aligned])
    joined = [replace(experiment, seeds=tuple(next(settled) for _ in experiment.seeds)) for experiment in experiments]
    return Joined(tuple(joined), left_out)


def _check_kind(first: Predictions, other: Predictions) -> None:
    found, expected = _kind(other), _kind(first)
    if found != expected:
        raise UserError(
            "predictions of another kind", file=other.file, found=found, expected=f"{expected}, as in {first.file}"
        )
    if set(other.classes) != set(first.classes):
        expected = f"{', '.join(sorted(first.classes))}, as in {first.file}"
        raise UserError("other classes", file=other.file, found=", ".join(sorted(other.classes)), expected=expected)


def _kind(one: Predictions) -> str:
    if one.events is not None:
        return "risks (survival)"
    return "probabilities of classes" if one.classes else "numbers"


def _shared(experiments: Sequence[Experiment], only_common: bool) -> tuple[list[str], dict[str, list[str]]]:
    """The slides of all tables, and those of each experiment that are not among them."""
    tables = [(experiment.name, one, set(one.names.tolist())) for experiment in experiments for one in experiment.seeds]
    common = set.intersection(*(own for _, _, own in tables))
    union = set.union(*(own for _, _, own in tables))
    for _, one, own in tables:
        if not only_common and (missing := sorted(union - own)):
            told = ", ".join(missing[:SHOWN]) + (" …" if len(missing) > SHOWN else "")
            raise UserError(
                f"{len(missing)} slides of other tables are missing: {told}", file=one.file, key="slide_id",
                found=f"{len(own)} slides", expected=f"the {len(union)} of all, or only_common=true for {len(common)}",
            )  # fmt: skip
    if not common:
        raise UserError(
            "no slide is in all tables",
            key="slide_id",
            found=[len(own) for _, _, own in tables],
            expected="shared slides",
        )
    left = {name: sorted(set.union(*(own for n, _, own in tables if n == name)) - common) for name, _, _ in tables}
    return sorted(common), left


def _take(one: Predictions, names: list[str], classes: tuple[str, ...]) -> Predictions:
    """The rows of slides in this order, with classes in this order."""
    place = {name: i for i, name in enumerate(one.names.tolist())}
    rows = np.array([place[name] for name in names])
    truth, values = one.truth[rows], one.values[rows]
    if classes:
        values = values[:, [one.classes.index(name) for name in classes]]
        truth = np.array([classes.index(one.classes[int(t)]) for t in truth], np.float64)
    events = None if one.events is None else one.events[rows]
    folds = None if one.folds is None else one.folds[rows]
    return Predictions(one.names[rows], one.patients[rows], truth, values, classes, one.file, events, folds)


def _check_truth(first: Predictions, other: Predictions) -> None:
    columns = [("label" if first.events is None else "time", first.truth, other.truth, first.labels, other.labels)]
    if first.events is not None and other.events is not None:
        told = [[f"{e:g}" for e in one] for one in (first.events, other.events)]
        columns.append(("event", first.events, other.events, told[0], told[1]))
    for key, one, two, expected, found in columns:
        off = np.flatnonzero(~np.isclose(one, two, rtol=1e-6, atol=0))
        if off.size:
            i = int(off[0])
            raise UserError(
                f"slide {first.names[i]} has another {key} ({off.size} slides differ)", file=other.file, key=key,
                found=found[i], expected=f"{expected[i]}, as in {first.file}",
            )  # fmt: skip


def _patients(tables: Sequence[Predictions]) -> np.ndarray:
    """The patients of all tables that know any; without, every slide is its own."""
    known = [one for one in tables if (one.patients != one.names).any()]
    for one in known[1:]:
        off = np.flatnonzero(one.patients != known[0].patients)
        if off.size:
            i, first = int(off[0]), known[0]
            raise UserError(
                f"slide {one.names[i]} has another patient ({off.size} slides differ)", file=one.file, key="patient_id",
                found=str(one.patients[i]), expected=f"{first.patients[i]}, as in {first.file}",
            )  # fmt: skip
    return known[0].patients if known else tables[0].names


def _shared_folds(tables: Sequence[Predictions]) -> np.ndarray | None:
    """Rows share a fold where they do in every table that has folds."""
    known = [one.folds for one in tables if one.folds is not None]
    if not known:
        return None
    numbers = np.stack([np.unique(folds, return_inverse=True)[1] for folds in known], axis=1)
    return np.unique(numbers, axis=0, return_inverse=True)[1].astype(np.str_)
