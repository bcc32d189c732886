"""split_manifest.json of a pretraining: which slides train and which validate, with a digest. No labels.

    {"train_ids": [...], "val_ids": [...], "sha256": …, "settings": {...}}

Not here: splits of labelled slides (mil.splits.making).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathray.data.splits import Split, Strings, holdout
from pathray.errors import UserError
from pathray.files.sheet import Sheet, read_sheet
from pathray.store.storage import Storage

MANIFEST = "split_manifest.json"
PARTS = ("train", "val")


@dataclass(frozen=True)
class Slides:
    """Unlabelled slides as a table of groups (pathray.data.splits.GroupedTable), sorted by id. `given` `[S]`: the parts
    that a manifest names; None without."""

    file: str
    names: Strings
    groups: Strings
    lines: Sequence[int]
    given: Strings | None = None

    @property
    def hash(self) -> str:
        rows = sorted(zip(self.names.tolist(), self.groups.tolist(), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def row_of(self, index: int) -> int:
        return self.lines[index]


def list_slides(
    ids: Sequence[str], file: str, csv: str | None, slide_column: str = "slide_id", patient_column: str = ""
) -> Slides:
    """The slides `ids` of the store or folder `file`; with a table `csv`, those of its rows that are there, with their
    patients (or each its own, without such a column) and, from a column `split`, their parts train and val.

    UserError for a slide in two rows, a patient in two spellings or in two parts, and a table without such slides.
    """
    if csv is None:
        names = np.array(sorted(ids), np.str_)
        return Slides(file, names, names, range(len(names)))
    sheet = read_sheet(csv, "table of slides")
    sheet.need(slide_column)
    cells, there = sheet.texts(slide_column), set(ids)
    _check_once(sheet, slide_column, cells)
    kept = sorted((name, i) for i, name in enumerate(cells) if name in there)
    if not kept:
        found, expected = f"{cells[0]} and {len(cells) - 1} more", f"slides such as {min(ids)}"
        raise UserError("no slide of the table is there", file=csv, key=slide_column, found=found, expected=expected)
    rows = [i for _, i in kept]
    groups = sheet.texts(patient_column) if patient_column and patient_column in sheet.names else cells
    if groups is not cells:
        sheet.check_spelling(patient_column, "patients")
    given = np.array(_parts(sheet))[rows] if "split" in sheet.names else None
    table = Slides(csv, np.array(cells)[rows], np.array(groups)[rows], [sheet.lines[i] for i in rows], given)
    _check_sides(table)
    return table


def split_slides(table: Slides, seed: int, val_fraction: float) -> Split:
    """The parts that the table gives; else a share of whole groups validates, from a seed. UserError for fewer than two
    groups, or a part without slides."""
    if table.given is None:
        return holdout(table, seed, train=1 - val_fraction, val=val_fraction, test=0.0)
    if missing := [part for part in PARTS if part not in table.given]:
        raise UserError("a part has no slide", file=table.file, key="split", found=f"none of {missing[0]}")
    return Split(table.given, {"kind": "manifest", "table": table.hash})


def write_manifest(folder: str, table: Slides, split: Split, source: Mapping[str, Any]) -> str:
    """Write split_manifest.json into the folder (path or URL), with facts of the `source`; returns the file."""
    ids = {f"{part}_ids": sorted(table.names[split.rows(part)].tolist()) for part in PARTS}
    settings = {**split.meta, **source}
    content = {"schema_version": 1, **ids, "settings": settings, "sha256": _digest(ids)}
    store = Storage.of(folder)
    store.write_bytes(MANIFEST, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    return store.join(MANIFEST)


def read_manifest(path: str) -> dict[str, list[str]]:
    """`train` and `val`: the ids in a split_manifest.json. UserError if it is not one, was edited, or has a slide
    twice."""
    folder, _, name = path.rpartition("/")
    try:
        content = json.loads(Storage.of(folder or ".").read_bytes(name))
        ids = {f"{part}_ids": [str(one) for one in content[f"{part}_ids"]] for part in PARTS}
        expected = content["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError("not a manifest of a split", file=path, found=str(e)[:80], expected="train_ids, val_ids") from e
    every = [one for part in ids.values() for one in part]
    if len(set(every)) < len(every):
        twice = next(one for one in every if every.count(one) > 1)
        raise UserError("a slide is there twice", file=path, key=twice, expected="once, in one part")
    if (found := _digest(ids)) != expected:
        raise UserError("the manifest was edited", file=path, key="sha256", found=found, expected=expected)
    return {part: ids[f"{part}_ids"] for part in PARTS}


def _digest(ids: Mapping[str, Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps([list(ids[f"{part}_ids"]) for part in PARTS]).encode()).hexdigest()


def _check_once(sheet: Sheet, column: str, cells: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(cells):
        if (other := first.setdefault(name, i)) != i:
            raise sheet.cell_error(f"slide {name} has two rows", i, column, f"once: row {sheet.lines[other]} has it")


def _parts(sheet: Sheet) -> list[str]:
    cells = sheet.texts("split")
    for i, cell in enumerate(cells):
        if cell not in PARTS:
            raise sheet.cell_error("not a part of a pretraining", i, "split", " | ".join(PARTS))
    return cells


def _check_sides(table: Slides) -> None:
    """UserError for a patient in two of the given parts."""
    first: dict[str, int] = {}
    for i, patient in enumerate(table.groups.tolist() if table.given is not None else ()):
        other = first.setdefault(patient, i)
        if table.given is not None and table.given[other] != table.given[i]:
            found = f"{patient} in {table.given[other]} (row {table.row_of(other)}) and in {table.given[i]}"
            raise UserError("a patient is in two parts", file=table.file, row=table.row_of(i), found=found)
