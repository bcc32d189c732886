"""Reads and writes split files with the digest of their table; a split of another or an edited table is refused.

A file has a first line ``# {json}`` (the table's digest and how the split was made), then ``path,group_id,split``.
Not here: how splits are made (pathray.data.splits).
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from typing import Any

import numpy as np

from pathray.data.splits import SPLITS, GroupedTable, Split, Strings
from pathray.errors import UserError
from pathray.files.csv_rows import check_header, records
from pathray.files.text import decode_text, read_user_file
from pathray.store.storage import Storage, digest_bytes

COLUMNS = ["path", "group_id", "split"]


def write_split(path: str, table: GroupedTable, split: Split) -> None:
    """Write one line per row of the table, sorted by path. Equal splits give equal bytes."""
    text = io.StringIO()
    text.write(f"# {json.dumps(dict(split.meta), sort_keys=True)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in np.argsort(table.names):
        writer.writerow([table.names[i], table.groups[i], split.of[i]])
    store = Storage.of(posixpath.dirname(path) or ".")
    store.write_bytes(posixpath.basename(path), text.getvalue().encode())


def read_split(path: str, table: GroupedTable, *, trains: bool = True) -> Split:
    """The split in a file, in the order of `table`'s rows.

    UserError, naming the row, for a group in more than one part, a row or group that is not in the table, and a missing
    row of the table; also for a split of another table, unknown parts, or no train rows. With `trains=False` there may
    be no train rows, since a whole cohort may be used for testing.
    """
    rows, meta, digest = split_rows(path)
    if meta and meta.get("table") != table.hash:
        message = "the split is of another table"
        raise UserError(
            message, file=path, key="table", found=meta.get("table"), expected=f"{table.hash}, {table.file}"
        )
    of = _match_rows(path, table, rows)
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
    """(line, [path, group, part]) of a split's rows, the metadata in its comment, and its digest. UserError, naming the
    row, if the file is not a split."""
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
    """The train groups of a split file, for any table. UserError for a group in more than one split."""
    first: dict[str, str] = {}
    for number, (_, group, part) in split_rows(path)[0]:
        if first.setdefault(group, part) != part:
            found, expected = f"{group} in {first[group]} and in {part}", "one split for each group"
            raise UserError(
                "a group appears in more than one split", file=path, row=number, found=found, expected=expected
            )
    return {group for group, part in first.items() if part == "train"}


def _meta(line: str) -> dict[str, Any]:
    """The metadata that `write_split` wrote in the first line; {} for any other comment."""
    try:
        found = json.loads(line[1:])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _match_rows(path: str, table: GroupedTable, rows: list[tuple[int, list[str]]]) -> Strings:
    place = {name: i for i, name in enumerate(table.names.tolist())}
    of = np.full(len(table.names), "", dtype="<U5")
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
