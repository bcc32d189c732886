"""Splits volumes into train, val and test by whole persons: both eyes and all scans of a person are on one side.

`stratified_split` keeps the shares of each stratum (device, region, eye) about equal; `recommended_split` takes what
`participants.tsv` of AI-READI recommends. Files of splits: pathray.data.split_files. Not here: splits without strata
and folds (pathray.data.splits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oct.indexing.file_lists import FileList
from oct.indexing.manifest import person_column
from pathray.data.order import rng
from pathray.data.split_files import split_rows
from pathray.data.splits import SPLITS, Split
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet
from pathray.urls import public

RECOMMENDED = "recommended_split"
SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
SHOWN = 5

Floats = npt.NDArray[np.float64]


def stratified_split(files: FileList, seed: int, *, train: float = 0.8, val: float = 0.1, test: float = 0.1) -> Split:
    """Assign whole persons, those of the rarest strata first, to the part that lacks most of their rarest stratum.

    The fractions are of the volumes, in each stratum and in all. No part of a fraction > 0 stays empty. The order of
    the rows does not change the split. After Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data
    (2011), with a person's strata as labels. UserError if the fractions do not add up to 1, or if there are fewer
    persons than parts.
    """
    fractions = {"train": train, "val": val, "test": test}
    if min(fractions.values()) < 0 or train <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError("fractions of the volumes add up to 1, and some train", key="fractions", found=fractions)
    parts = [name for name, share in fractions.items() if share > 0]
    persons, counts = _count_strata(files)
    if len(persons) < len(parts):
        found, expected = f"{len(persons)} persons", f"a person for each of {', '.join(parts)}"
        raise UserError(
            "too few persons to split", file=public(files.file), key="person", found=found, expected=expected
        )
    chosen = _assign(counts, np.array([fractions[name] for name in parts]), seed)
    given = {person: parts[k] for person, k in zip(persons, chosen, strict=True)}
    return _split(files, given, {"kind": "stratified-by-person", "seed": seed, "fractions": fractions})


def _count_strata(files: FileList) -> tuple[list[str], Floats]:
    """The sorted persons, and how many volumes of each stratum each has: `[P, S]`."""
    persons, person = np.unique(files.groups, return_inverse=True)
    strata, stratum = np.unique(files.strata, return_inverse=True)
    counts = np.zeros((len(persons), len(strata)))
    np.add.at(counts, (person, stratum), 1)
    return persons.tolist(), counts


def _assign(counts: Floats, fractions: Floats, seed: int) -> list[int]:
    """The part of each person."""
    total = counts.sum(0)
    lacking = fractions[:, None] * total  # volumes of each stratum that each part still lacks: [parts, S]
    sizes = np.where(counts > 0, total, np.inf)  # of each person's strata: [P, S]
    rarest, size = sizes.argmin(1), sizes.min(1)
    order = rng(seed, "splits", 0).permutation(len(counts))
    order = order[np.lexsort((-counts[order].sum(1), size[order]))]
    chosen, placed = [0] * len(counts), [0] * len(fractions)
    for done, i in enumerate(order.tolist()):
        empty = [k for k, persons in enumerate(placed) if not persons]
        open_to = empty if len(counts) - done <= len(empty) else range(len(fractions))
        own, whole = lacking[:, rarest[i]].round(9).tolist(), lacking.sum(1).round(9).tolist()
        part = max(open_to, key=lambda k: (own[k], whole[k], -k))
        chosen[i] = part
        placed[part] += 1
        lacking[part] -= counts[i]
    return chosen


def recommended_split(files: FileList, participants: str) -> Split:
    """The split that the column `recommended_split` of a participants table (TSV or CSV) gives to each person.

    Persons without volumes are ignored. MissingFile; UserError for a missing column, an unknown split (with its row),
    a person with two splits, and volumes of persons that the table lacks.
    """
    sheet = read_sheet(participants, "table of participants")
    column = person_column(sheet)
    sheet.need(RECOMMENDED)
    given = _recommended(sheet, column)
    if lacking := sorted(set(files.groups.tolist()) - given.keys()):
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        message, found = "persons with volumes are not in the table", ", ".join(lacking[:SHOWN]) + more
        raise UserError(message, file=sheet.file, key=column, found=found, expected="a row for each")
    return _split(files, given, {"kind": "recommended"})


def _recommended(sheet: Sheet, column: str) -> dict[str, str]:
    persons, cells = sheet.texts(column), sheet.texts(RECOMMENDED)
    sheet.check_spelling(column, "persons")
    given: dict[str, str] = {}
    for i, (person, cell) in enumerate(zip(persons, cells, strict=True)):
        part = SPELLINGS.get(cell.lower(), cell.lower())
        if part not in SPLITS:
            raise sheet.cell_error("unknown split", i, RECOMMENDED, " | ".join(SPLITS))
        if given.setdefault(person, part) != part:
            expected = f"{given[person]}, as in an earlier row of person {person}"
            raise sheet.cell_error("a person appears in more than one split", i, RECOMMENDED, expected)
    return given


def read_persons(path: str, part: str) -> set[str]:
    """The persons of one part of a split file, whichever index it was made from.

    MissingFile; UserError for a person in more than one part, and for a part without persons.
    """
    first: dict[str, str] = {}
    for number, (_, person, own) in split_rows(path)[0]:
        if first.setdefault(person, own) != own:
            found, expected = f"{person} in {first[person]} and in {own}", "one split for each person"
            message = "a person appears in more than one split"
            raise UserError(message, file=public(path), row=number, found=found, expected=expected)
    if not (persons := {person for person, own in first.items() if own == part}):
        there = sorted(set(first.values()))
        raise UserError("the split has no persons in this part", file=public(path), key=part, expected=there)
    return persons


def _split(files: FileList, given: Mapping[str, str], meta: Mapping[str, Any]) -> Split:
    of = np.array([given[person] for person in files.groups.tolist()], dtype="<U5")
    return Split(of, {**meta, "table": files.hash})
