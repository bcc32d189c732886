"""Which rows train, validate and test: by whole groups, seeded, on file with the digest of their table.

A file has a first line ``# {json}`` (the table's digest and how the split was made), then ``path,group_id,split``.
The same table in another order gives the same split. Not here: what stands in the table (regression.table).
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng
from pathray.errors import UserError
from pathray.files.csv_rows import check_header, records
from pathray.files.text import decode_text, read_user_file
from pathray.store.storage import Storage, digest_bytes
from regression.table import Strings, Table

SPLITS = ("train", "val", "test")
COLUMNS = ["path", "group_id", "split"]


@dataclass(frozen=True)
class Split:
    """`of` `[N]`: train, val or test for each row of the table, in its order. `meta` says how it was made."""

    of: Strings
    meta: Mapping[str, Any]

    def rows(self, name: str) -> npt.NDArray[np.int64]:
        """The rows of one part."""
        return np.flatnonzero(self.of == name)


def holdout(table: Table, seed: int, *, train: float = 0.7, val: float = 0.15, test: float = 0.15) -> Split:
    """Whole groups in random order, each to the part that lacks most rows of its fraction; no part stays empty.

    UserError for fractions that do not add up to 1, and for fewer groups than parts.
    """
    fractions = {"train": train, "val": val, "test": test}
    if min(fractions.values()) < 0 or train <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError("fractions of the rows add up to 1, and some train", key="fractions", found=fractions)
    wanted = {name: share * len(table) for name, share in fractions.items() if share > 0}
    groups, sizes = _shuffled(table, seed)
    if len(groups) < len(wanted):
        found, expected = f"{len(groups)} groups", f"a group for each of {', '.join(wanted)}"
        raise UserError("too few groups to split", file=table.file, key="group_id", found=found, expected=expected)
    placed, given = dict.fromkeys(wanted, 0), {}
    for i, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        empty = [name for name in wanted if placed[name] == 0]
        open_to = empty if len(groups) - i <= len(empty) else list(wanted)
        part = max(open_to, key=lambda name: wanted[name] - placed[name])
        given[group] = part
        placed[part] += size
    return _split(table, given, {"kind": "holdout", "seed": seed, "fractions": fractions})


def folds(table: Table, seed: int, k: int | None = None, *, validation: bool = True) -> list[Split]:
    """Group k-fold: fold i tests, the next one validates, the others train. Without `k`: leave one group out.

    Groups go to the fold with fewest rows, the largest first. UserError for more folds than groups, and where nothing
    is left to train on.
    """
    groups, sizes = _shuffled(table, seed)
    count = len(groups) if k is None else k
    least = 3 if validation else 2
    if not least <= count <= len(groups):
        found, expected = f"{count} folds of {len(groups)} groups", f"{least} to {len(groups)}"
        raise UserError("so many folds cannot be made", file=table.file, key="k", found=found, expected=expected)
    rows, fold = [0] * count, {}
    for i in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        least_rows = min(range(count), key=lambda f: rows[f])
        fold[groups[i]] = least_rows
        rows[least_rows] += sizes[i]
    kind = {"kind": "leave-one-group-out" if k is None else "group-k-fold", "seed": seed, "k": count}
    out = []
    for i in range(count):
        parts = {i: "test"} | ({(i + 1) % count: "val"} if validation else {})
        out.append(_split(table, {g: parts.get(f, "train") for g, f in fold.items()}, {**kind, "fold": i}))
    return out


def write_split(path: str, table: Table, split: Split) -> None:
    """One line per row of the table, sorted by path: equal splits give equal bytes."""
    text = io.StringIO()
    text.write(f"# {json.dumps(dict(split.meta), sort_keys=True)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in np.argsort(table.names):
        writer.writerow([table.names[i], table.groups[i], split.of[i]])
    store = Storage.of(posixpath.dirname(path) or ".")
    store.write_bytes(posixpath.basename(path), text.getvalue().encode())


def read_split(path: str, table: Table, *, trains: bool = True) -> Split:
    """The split on file, in the order of `table`'s rows.

    UserError naming the row for a group on two sides, a row or group that the table does not have, a row of the table
    that is missing; and for the split of another table, unknown parts, or nothing to train on. Without `trains` nothing
    need be: all of another cohort may test.
    """
    rows, meta, digest = split_rows(path)
    if meta and meta.get("table") != table.hash:
        message = "the split is of another table"
        raise UserError(
            message, file=path, key="table", found=meta.get("table"), expected=f"{table.hash}, {table.file}"
        )
    of = _placed(path, table, rows)
    first: dict[str, str] = {}
    for i, (group, part) in enumerate(zip(table.groups.tolist(), of.tolist(), strict=True)):
        if first.setdefault(group, part) != part:
            row, found = table.row_of(i), f"{group} in {first[group]} and in {part}"
            raise UserError(
                "a group appears in more than one split", file=path, row=row, key=table.names[i], found=found
            )
    if trains and "train" not in of:
        raise UserError("nothing to train on", file=path, key="split", expected="rows of train")
    return Split(of, {**meta, "sha256": digest})


def split_rows(path: str) -> tuple[list[tuple[int, list[str]]], dict[str, Any], str]:
    """(line, [path, group, part]) of a split's rows, what its own comment says of it, and its digest. UserError naming
    the row for what is none."""
    data = read_user_file(path, "split", "CSV in UTF-8")
    text = decode_text(path, data, "split")
    rows = [(line, [cell.strip() for cell in cells]) for line, cells in records(path, text, ",")]
    line, header = rows[0] if rows else (1, [])
    check_header(path, line, header, ",", "split")
    if header != COLUMNS:
        raise UserError("not a split", file=path, row=line, found=",".join(header)[:80], expected=",".join(COLUMNS))
    for number, row in rows[1:]:
        if len(row) != len(COLUMNS) or row[2] not in SPLITS:
            found, expected = ",".join(row)[:80], f"{','.join(COLUMNS)}, a split being {' | '.join(SPLITS)}"
            raise UserError("not a row of a split", file=path, row=number, found=found, expected=expected)
    found_meta = [meta for above in text.split("\n", line - 1)[: line - 1] if (meta := _meta(above))]
    return rows[1:], found_meta[0] if found_meta else {}, digest_bytes(data)


def groups_that_train(path: str) -> set[str]:
    """Of a split's file, whatever table it was made for. UserError for a group in more than one split."""
    first: dict[str, str] = {}
    for number, (_, group, part) in split_rows(path)[0]:
        if first.setdefault(group, part) != part:
            found, expected = f"{group} in {first[group]} and in {part}", "one split for each group"
            raise UserError(
                "a group appears in more than one split", file=path, row=number, found=found, expected=expected
            )
    return {group for group, part in first.items() if part == "train"}


def _meta(line: str) -> dict[str, Any]:
    """What `write_split` says in a file's first line; {} for a comment of somebody else's."""
    try:
        found = json.loads(line[1:])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _placed(path: str, table: Table, rows: list[tuple[int, list[str]]]) -> Strings:
    place = {name: i for i, name in enumerate(table.names.tolist())}
    of = np.full(len(table), "", dtype="<U5")
    for number, row in rows:
        i = place.get(row[0])
        if i is None or of[i]:
            message = "the table has no such row" if i is None else "a path is there twice"
            expected = f"a path of {table.file}, once"
            raise UserError(message, file=path, row=number, key="path", found=row[0], expected=expected)
        if table.groups[i] != row[1]:
            expected = f"{table.groups[i]}, as in the table"
            raise UserError("another group than in the table", file=path, row=number, found=row[1], expected=expected)
        of[i] = row[2]
    if (missing := np.flatnonzero(of == "")).size:
        found = f"{missing.size} rows, the first {table.names[missing[0]]}"
        raise UserError("rows of the table that the split does not place", file=path, key="path", found=found)
    return of


def _shuffled(table: Table, seed: int) -> tuple[list[str], list[int]]:
    """The groups in random order, with their numbers of rows."""
    groups, sizes = np.unique(table.groups, return_counts=True)
    order = rng(seed, "splits", 0).permutation(len(groups))
    return groups[order].tolist(), sizes[order].tolist()


def _split(table: Table, given: Mapping[str, str], meta: Mapping[str, Any]) -> Split:
    of = np.array([given[group] for group in table.groups.tolist()], dtype="<U5")
    return Split(of, {**meta, "table": table.hash})
