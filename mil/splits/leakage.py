"""Finds one bag under two patients, in two parts of a split: the same file under another name, or a copy whose features
were rounded, noised, reordered or cut.

First bags of equal content, by the store's digests; then bags with near mean features (mil.splits.nearest_means), which
count only if their tiles agree (mil.splits.bag_overlap). Copies within a patient are always in one part and no fault.
Not here: patients in two parts (mil.splits.making, mil.splits.files).
"""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.splits.bag_overlap import shared_tiles
from mil.splits.nearest_means import suspicious_pairs
from mil.store.reading import Store
from pathray.data.splits import GroupedTable, Split
from pathray.errors import UserError
from pathray.store.storage import Storage

REPORT = "leakage.csv"
SAME_CONTENT, SAME_TILES = "same content", "same tiles"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicate:
    """Two slides (rows of the table) of different patients with one bag. `share`: of the compared tiles, those that
    both have."""

    a: int
    b: int
    kind: str
    share: float


def find_duplicates(store: Store, slides: npt.NDArray[np.int64], groups: npt.NDArray[np.str_]) -> list[Duplicate]:
    """Pairs of `slides` `[S]` (rows of the store) that are one bag, and of different `groups` `[S]`."""
    found = {pair: Duplicate(*pair, SAME_CONTENT, 1.0) for pair in _equal_content(store, slides, groups)}
    for a, b in suspicious_pairs(store.means[slides], groups):
        if (a, b) not in found:
            share, copies = shared_tiles(store.features(int(slides[a])), store.features(int(slides[b])))
            if copies:
                found[a, b] = Duplicate(a, b, SAME_TILES, share)
    return [found[pair] for pair in sorted(found)]


def check_duplicates(
    store: Store,
    table: GroupedTable,
    slides: npt.NDArray[np.int64],
    splits: Mapping[str, Split],
    *,
    allowed: bool = False,
    folder: str | None = None,
) -> None:
    """UserError, naming a pair, if a bag is in two parts of a split under two patients; a warning where it is
    `allowed`. `slides` `[S]` are the table's rows in the store. The pairs are written to leakage.csv in `folder`."""
    found = [(one, _where(one, splits)) for one in find_duplicates(store, slides, table.groups)]
    leaks = [(one, where) for one, where in found if where]
    log.info("%d pairs of patients share a bag; %d are in two parts of a split", len(found), len(leaks))
    if folder is not None and leaks:
        Storage.of(folder).write_bytes(REPORT, _report(table, leaks))
    if not leaks:
        return
    one, where = leaks[0]
    names, patients = table.names[[one.a, one.b]], table.groups[[one.a, one.b]]
    told = (
        f"{names[0]} ({patients[0]}) and {names[1]} ({patients[1]}), {one.kind}: {where[0]}; "
        f"{len(leaks)} pairs{f' in {Storage.of(folder).join(REPORT)}' if folder else ''}"
    )
    if allowed:
        log.warning("one bag is in two parts of a split under two patients: %s", told)
        return
    message, expected = (
        "one bag is in two parts of a split under two patients",
        ("each bag under one patient: correct the table; or splits.allow_duplicates=true"),
    )
    row = table.row_of(one.b)
    raise UserError(message, file=table.file, row=row, key=names[1], found=told, expected=expected)


def _equal_content(store: Store, slides: npt.NDArray[np.int64], groups: npt.NDArray[np.str_]) -> set[tuple[int, int]]:
    """Pairs with equal digests of the stored bag, or of the file that it came from. Of many copies each is paired with
    those of the first patient and of the first other one."""
    pairs: set[tuple[int, int]] = set()
    for column in ("sha256", "source_sha256"):
        digests = store.slides[column].to_pylist()
        same: dict[str, list[int]] = defaultdict(list)
        for i, slide in enumerate(slides.tolist()):
            same[digests[slide]].append(i)
        for copies in same.values():
            first = copies[0]
            other = next((i for i in copies if groups[i] != groups[first]), first)
            pairs |= {_ordered(x, i) for i in copies for x in (first, other) if groups[i] != groups[x]}
    return pairs


def _ordered(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _where(pair: Duplicate, splits: Mapping[str, Split]) -> list[str]:
    """The splits in which the two are in different parts, and in which ones."""
    parts = ((name, str(split.of[pair.a]), str(split.of[pair.b])) for name, split in splits.items())
    return [f"{a} and {b} of {name}" for name, a, b in parts if a != b and a and b]


def _report(table: GroupedTable, leaks: Sequence[tuple[Duplicate, Sequence[str]]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_a", "patient_a", "slide_b", "patient_b", "kind", "shared_tiles", "where"])
    for one, where in leaks:
        row: list[Any] = []
        for i in (one.a, one.b):
            row += [table.names[i], table.groups[i]]
        writer.writerow([*row, one.kind, f"{one.share:.3f}", "; ".join(where)])
    return text.getvalue().encode()
