"""Files of splits: a parquet per split, and a summary of all, each with a SHA-256 of the rows.

    fold_0.parquet …    slide_id, patient_id, label, part; sorted by slide. Its metadata say how it was made, of which
                        table and store, and the digest of its rows
    summary.json        scheme, seed, digests, and counts per split and part (mil.splits.summary)

A file that was edited or cut short, or that is of another cohort, is refused. The library's CSV files
(pathray.data.split_files) are read too. Not here: how splits are made, split_manifest.json (mil.splits.manifest).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mil.cohort import Cohort
from mil.splits.summary import SUMMARY, read_summary, summarise
from pathray.data import split_files as csv_files
from pathray.data.splits import SPLITS, Split
from pathray.errors import MissingFile, UserError
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage

KEY, WHAT = "pathray_split", "split"
PREFIX, SUFFIX = "fold_", ".parquet"
COLUMNS = ("slide_id", "patient_id", "label", "part")
SCHEMA_VERSION = 1
Rows = list[tuple[str, str, str, str]]


def write_splits(folder: str, cohort: Cohort, splits: Mapping[str, Split]) -> dict[str, str]:
    """Write the files of all splits into the folder (path or URL); returns each one's by name. The summary comes last,
    and files of other splits are removed. Equal splits give equal bytes."""
    store = Storage.of(folder)
    files = {name: _file_of(name) for name in splits}
    store.remove(SUMMARY)
    for left in set(_listed(store)) - set(files.values()):
        store.remove(left)
    rows = {name: rows_of(cohort, split) for name, split in splits.items()}
    for name, split in splits.items():
        store.write_bytes(files[name], _table(name, cohort, split, rows[name]))
    digests = {name: digest_of(rows[name]) for name in splits}
    store.write_bytes(SUMMARY, summarise(cohort, splits, rows, files, digests))
    return {name: store.join(file) for name, file in files.items()}


def split_files(folder: str) -> dict[str, str]:
    """Name and file of each split in a folder that `write_splits` or `make_splits` wrote, in order; or of the one file
    `folder`. MissingFile for none; UserError where the summary names a file that is missing or has changed."""
    if folder.endswith(SUFFIX):
        return {str(_meta_of(_read(folder), folder)["name"]): folder}
    if folder.endswith(".csv"):
        return {"run": folder}
    store = Storage.of(folder)
    if store.exists(SUMMARY):
        return _summarised(store)
    if _listed(store):
        expected = f"{SUMMARY}, which make_splits writes at its end"
        raise MissingFile("the splits are incomplete", file=store.url, key="splits.folder", expected=expected)
    names = [n.removesuffix(".csv") for n in store.list() if n.startswith(PREFIX) and n.endswith(".csv")]
    if not names:
        expected = f"{SUMMARY} with fold_*.parquet, or fold_0.csv …"
        raise MissingFile("no splits here", file=store.url, key="splits.folder", expected=expected)
    return {name: store.join(f"{name}.csv") for name in sorted(names, key=lambda n: (len(n), n))}


def read_split(path: str, cohort: Cohort) -> Split:
    """The split in a file, in the order of the cohort's slides.

    UserError, naming the row where there is one, for a slide or a patient in two parts, a part that is none, rows that
    are not those that were written, and a file of another cohort. CSV as in pathray.data.split_files.read_split.
    """
    if path.endswith(".csv"):
        return csv_files.read_split(path, cohort)
    table = _read(path)
    rows, meta = _checked_rows(path, table), _meta_of(table, path)
    if (found := digest_of(rows)) != meta["sha256"]:
        message = "the split was edited: its rows are not those that were written"
        raise UserError(message, file=path, key="sha256", found=found, expected=meta["sha256"])
    if meta["table"] != cohort.hash:
        _refuse_other(path, rows, meta, cohort)
    part = {name: part for name, _, _, part in rows}
    of = np.array([part[name] for name in cohort.names.tolist()], "<U5")
    return Split(of, {**meta["made"], "table": cohort.hash, "sha256": meta["sha256"]})


def rows_of(cohort: Cohort, split: Split) -> Rows:
    """(slide, patient, label, part), sorted by slide; the label of a regression is its number as text."""
    labels = cohort.labels.tolist() if cohort.classes else [repr(float(t)) for t in cohort.truth]
    return sorted(zip(cohort.names.tolist(), cohort.groups.tolist(), labels, split.of.tolist(), strict=True))


def digest_of(rows: Sequence[tuple[str, ...]]) -> str:
    """SHA-256 of the rows."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def _table(name: str, cohort: Cohort, split: Split, rows: Rows) -> bytes:
    made = {key: value for key, value in split.meta.items() if key not in ("table", "sha256")}
    meta = {
        "schema_version": SCHEMA_VERSION, "name": name, "made": made, "sha256": digest_of(rows),
        "table": cohort.hash, "store": cohort.store_hash,
    }  # fmt: skip
    columns = {column: [row[i] for row in rows] for i, column in enumerate(COLUMNS)}
    table = pa.table(columns, schema=pa.schema([(column, pa.string()) for column in COLUMNS]))
    return to_bytes(table.replace_schema_metadata({KEY: json.dumps(meta, sort_keys=True)}))


def _read(path: str) -> pa.Table:
    folder, _, name = path.rpartition("/")
    table = of_bytes(Storage.of(folder or ".").read_bytes(name), path, WHAT)
    if tuple(table.column_names) != COLUMNS:
        raise UserError("not a split", file=path, found=table.column_names[:8], expected=", ".join(COLUMNS))
    return table


def _meta_of(table: pa.Table, path: str) -> dict[str, Any]:
    """What the file says of itself. UserError where another program wrote it, or a newer version."""
    try:
        meta = json.loads((table.schema.metadata or {})[KEY.encode()])
        version = meta["schema_version"]
    except (KeyError, ValueError, TypeError) as e:
        message, expected = "the split has no digest: another program wrote it", "a file as make_splits wrote it"
        raise UserError(message, file=path, key=KEY, expected=expected) from e
    if version > SCHEMA_VERSION:
        message, expected = "the split was written by a newer version", f"at most {SCHEMA_VERSION}"
        raise UserError(message, file=path, found=version, expected=expected)
    return dict(meta)


def _checked_rows(path: str, table: pa.Table) -> Rows:
    """The rows. UserError, naming the row (from 0), for a cell that is no text, an unknown part, and a slide or a
    patient in two parts."""
    rows: Rows = list(zip(*(table[column].to_pylist() for column in COLUMNS), strict=True))
    slides: dict[str, int] = {}
    patients: dict[str, int] = {}
    for i, row in enumerate(rows):
        slide, patient, _, part = row
        if part not in SPLITS or not all(isinstance(cell, str) for cell in row):
            expected = f"texts, the part being {' | '.join(SPLITS)}"
            raise UserError("not a row of a split", file=path, row=i, found=str(row)[:120], expected=expected)
        for what, name, first in (("slide", slide, slides), ("patient", patient, patients)):
            other = first.setdefault(name, i)
            if rows[other][3] != part:
                found, expected = f"{name} in {rows[other][3]} (row {other}) and in {part}", f"one part for each {what}"
                raise UserError(f"a {what} is in two parts", file=path, row=i, found=found, expected=expected)
        if slides[slide] != i:
            raise UserError("a slide is there twice", file=path, row=i, found=slide, expected="one row for each slide")
    return rows


def _refuse_other(path: str, rows: Rows, meta: Mapping[str, Any], cohort: Cohort) -> None:
    """Raise the UserError that says how the cohort differs from the one that was split."""
    message = "the split is of another cohort"
    if meta["store"] != cohort.store_hash:
        expected = f"{cohort.store_hash}, the features of now"
        raise UserError(message, file=path, key="store", found=meta["store"], expected=expected)
    labels = cohort.labels.tolist() if cohort.classes else [repr(float(t)) for t in cohort.truth]
    now = dict(zip(cohort.names.tolist(), zip(cohort.groups.tolist(), labels, strict=True), strict=True))
    for i, (slide, patient, label, _) in enumerate(rows):
        if now.pop(slide, None) != (patient, label):
            found, expected = f"{slide} of {patient}, {label}", f"a slide as in {cohort.file}"
            raise UserError(message, file=path, row=i, found=found, expected=expected)
    found = f"{len(now)} slides that were not split, such as {min(now)}" if now else "another set of classes"
    raise UserError(message, file=path, key="table", found=found, expected=f"the slides of {cohort.file}")


def _summarised(store: Storage) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, entry in read_summary(store)["splits"].items():
        path = store.join(entry["file"])
        meta = _meta_of(_read(path), path)
        if (meta["name"], meta["sha256"]) != (name, entry["sha256"]):
            message, expected = "the split is not the one of the summary", entry["sha256"]
            raise UserError(message, file=path, key="sha256", found=meta["sha256"], expected=expected)
        files[name] = path
    return files


def _listed(store: Storage) -> list[str]:
    names = [posixpath.basename(name) for name in store.list()] if store.exists() else []
    return [name for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX)]


def _file_of(name: str) -> str:
    return f"{'' if name.startswith(PREFIX) else PREFIX}{name}{SUFFIX}"
