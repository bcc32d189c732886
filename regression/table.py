"""The table of a regression: one image per row with its group and its targets, read and checked before anything else.

CSV or parquet with the columns `path`, `group_id` and one column per target: y0 … y{K−1}, or named genes. Paths are
relative to the table. It may say where the images lie in their sections (regression.places) and, in a column `unit`,
what the targets are in. Not here: which rows train (regression.splits) and what is in the images (regression.data).
"""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.errors import MissingFile, UserError
from core.storage import Storage
from regression.places import Places

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]
NAMED_AT_MOST = 8


@dataclass(frozen=True)
class Table:
    """`names` `[N]` are the paths as written, `groups` `[N]`, `targets` `[N, K]` of the `genes`, in `unit` ("": not
    said); read from `file`. `places` where the images lie in their sections, if the table says so."""

    file: str
    names: Strings
    groups: Strings
    targets: Floats
    genes: tuple[str, ...]
    places: Places | None = None
    unit: str = ""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Where the images are: absolute, or URLs."""
        folder = Storage.of(posixpath.dirname(self.file) or ".").url
        return [_below(folder, name) for name in self.names.tolist()]

    @property
    def hash(self) -> str:
        """Digest of all rows, whatever their order, and not of where the table lies."""
        order = np.argsort(self.names)
        digest = hashlib.sha256("\x00".join(self.genes).encode())
        digest.update("\x00".join(self.names[order].tolist() + self.groups[order].tolist()).encode())
        digest.update(np.ascontiguousarray(self.targets[order]).tobytes())
        return digest.hexdigest()

    def row_of(self, index: int) -> int:
        """The line of a CSV, or the row (from 0) of a parquet table."""
        return index if self.file.endswith(".parquet") else index + 2


def read_table(
    path: str,
    *,
    genes: Sequence[str] | None = None,
    target_dim: int | None = None,
    check_files: bool = True,
    constant_genes: bool = False,
) -> Table:
    """The table at a path or URL, checked whole. With `constant_genes` a gene may have one value in all rows: a model
    may be judged on a cohort in which one of its genes is silent, though it could not be trained there.

    `genes` names the target columns; without them they are y0, y1 … `target_dim` is how many there must be.
    MissingFile for the table or an image; UserError naming file, row and column for missing columns, another number of
    targets, empty cells, a path twice, a target that is no finite number, and genes that are the same in all rows;
    for coordinates that are no numbers, and several units.
    """
    columns = _columns(path)
    repeated = [name for i, name in enumerate(columns.column_names) if name in columns.column_names[:i]]
    if repeated:
        raise UserError("the table has a column twice", file=path, row=1, key=repeated[0], expected="each name once")
    for name in ("path", "group_id"):
        if name not in columns.column_names:
            raise UserError("the table has no such column", file=path, key=name, found=columns.column_names[:8])
    chosen = _targets(path, columns.column_names, genes, target_dim)
    names, groups = (_texts(path, columns, name) for name in ("path", "group_id"))
    values = np.column_stack([_numbers(path, columns, name) for name in chosen])
    places, unit = _places(path, columns, chosen, groups), _unit(path, columns)
    table = Table(path, names, groups, values, chosen, places, unit)
    _check(table, check_files, constant_genes)
    return table


def _columns(path: str) -> pa.Table:
    import pyarrow.csv
    import pyarrow.parquet

    folder, _, name = path.rpartition("/")
    try:
        data = io.BytesIO(Storage.of(folder or ".").read_bytes(name))
    except MissingFile as e:
        raise MissingFile("no such table", file=path, expected="a CSV or parquet file") from e
    try:
        if path.endswith(".parquet"):
            table = pyarrow.parquet.read_table(data)
        else:
            kinds = dict.fromkeys(("path", "group_id", "section", "image", "unit"), pa.string())
            options = pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
            delimiter = "\t" if path.endswith((".tsv", ".tsv.gz")) else ","
            parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
            table = pyarrow.csv.read_csv(data, convert_options=options, parse_options=parse)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError("the table cannot be read", file=path, found=str(e)[:200], expected="CSV or parquet") from e
    if table.num_rows == 0:
        raise UserError("the table has no rows", file=path)
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError("the table has a column twice", file=path, key=twice[0])
    return table


def _targets(path: str, found: Sequence[str], genes: Sequence[str] | None, wanted: int | None) -> tuple[str, ...]:
    if genes is None:
        count = sum(name[:1] == "y" and name[1:].isdigit() for name in found)
        genes = [f"y{i}" for i in range(count)]
    if missing := [gene for gene in genes if gene not in found]:
        message = "the table lacks target columns"
        raise UserError(message, file=path, key=missing[0], found=missing[:NAMED_AT_MOST], expected="a column for each")
    if len(genes) == 0 or (wanted is not None and len(genes) != wanted):
        expected = "y0, y1 …" if wanted is None else f"{wanted} (target_dim)"
        raise UserError("a wrong number of targets", file=path, key="targets", found=len(genes), expected=expected)
    if len(set(genes)) < len(genes):
        raise UserError("a gene is named twice", file=path, found=[g for g in genes if list(genes).count(g) > 1][:1])
    return tuple(genes)


def _texts(path: str, columns: pa.Table, name: str, may_be_empty: bool = False) -> Strings:
    import pyarrow.compute as pc

    filled = pc.fill_null(columns[name].cast(pa.string()), "")
    values = pc.utf8_trim_whitespace(filled).to_numpy(zero_copy_only=False)
    empty = [i for i, value in enumerate(values) if not value]
    if empty and not may_be_empty:
        row = empty[0] + (0 if path.endswith(".parquet") else 2)
        raise UserError("an empty cell", file=path, row=row, key=name, found="", expected="a value")
    texts: Strings = values.astype(np.str_)
    return texts


def _places(path: str, columns: pa.Table, genes: Sequence[str], groups: Strings) -> Places | None:
    """What the table says of where its images lie; a column that is a target says nothing of it."""
    found = set(columns.column_names) - set(genes)
    if not {"x", "y"} <= found:
        return None
    unknown = np.full(len(groups), np.nan)
    numbers = {
        name: _numbers(path, columns, name, "a coordinate or a size") if name in found else unknown
        for name in ("x", "y", "image_mpp", "radius_px")
    }
    for name in ("image_mpp", "radius_px"):
        if (bad := np.flatnonzero(numbers[name] <= 0)).size:
            row, value = int(bad[0]) + (0 if path.endswith(".parquet") else 2), float(numbers[name][bad[0]])
            raise UserError("a size must be positive", file=path, row=row, key=name, found=value, expected="> 0")
    section = _texts(path, columns, "section") if "section" in found else groups
    image = np.full(len(groups), "")
    if "image" in found:
        folder = Storage.of(posixpath.dirname(path) or ".").url
        image = np.array(
            [_below(folder, name) if name else "" for name in _texts(path, columns, "image", True).tolist()]
        )
    return Places(numbers["x"], numbers["y"], section, image, numbers["image_mpp"], numbers["radius_px"])


def _unit(path: str, columns: pa.Table) -> str:
    if "unit" not in columns.column_names:
        return ""
    units = sorted(set(_texts(path, columns, "unit").tolist()))
    if len(units) > 1:
        raise UserError("targets are in one unit", file=path, key="unit", found=units[:NAMED_AT_MOST])
    return str(units[0])


def _numbers(path: str, columns: pa.Table, name: str, what: str = "a target") -> Floats:
    column, first = columns[name], 0 if path.endswith(".parquet") else 2
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        for i, value in enumerate(column.to_pylist()):
            if not _is_number(value):
                raise _no_number(what, path, first + i, name, value)
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        values: Floats = column.cast(pa.float64()).to_numpy().astype(np.float64)
    else:
        values = np.array([float(value) for value in column.to_pylist()], np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise _no_number(what, path, first + int(bad[0]), name, column[int(bad[0])].as_py())
    return values


def _no_number(what: str, path: str, row: int, name: str, value: Any) -> UserError:
    return UserError(f"{what} is no finite number", file=path, row=row, key=name, found=value, expected="a number")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # which Python would read: 1_000
        return False
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _check(table: Table, check_files: bool, constant_genes: bool) -> None:
    seen: dict[str, int] = {}
    for row, path in enumerate(table.paths):  # and not as written: ./a.png is a.png
        if (first := seen.setdefault(path, row)) != row:
            found = f"{table.names[row]}, already in row {table.row_of(first)}"
            raise UserError("a path stands twice", file=table.file, row=table.row_of(row), key="path", found=found)
    if len(table) > 1 and not constant_genes and (same := np.flatnonzero(np.ptp(table.targets, axis=0) == 0)).size:
        dull = [table.genes[k] for k in same[:NAMED_AT_MOST]]
        message = "targets that are the same in every row have nothing to learn: leave them out"
        raise UserError(message, file=table.file, key=dull[0], found=dull, expected="values that vary")
    if check_files:
        _check_files(table)


def _check_files(table: Table) -> None:
    """Every image is there, the sections' too; folders are listed once instead of asking for each file."""
    listed: dict[str, set[str]] = {}
    sections = table.places.image.tolist() if table.places is not None else []
    for key, paths in (("path", table.paths), ("image", sections)):
        for i, path in enumerate(paths):
            folder, _, name = path.rpartition("/")
            if path and folder not in listed:
                listed[folder] = set(Storage.of(folder or "/").list())
            if path and name not in listed[folder]:
                row = table.row_of(i)
                raise MissingFile("no such image", file=table.file, row=row, key=key, found=path, expected="an image")


def _below(folder: str, name: str) -> str:
    if "://" in name or name.startswith("/"):
        return name
    return posixpath.normpath(f"{folder}/{name}") if "://" not in folder else f"{folder.rstrip('/')}/{name}"
