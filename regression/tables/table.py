"""The table of a regression: one image per row with its group and its targets, read and checked before anything else.

CSV or parquet with the columns `path`, `group_id` and one column per target: y0 … y{K−1}, or named genes. Paths are
relative to the table. Optional: the places of the images in their sections (regression.tables.places) and, in a column
`unit`, the unit of the targets. Not here: which rows train (pathray.data.splits); the images (regression.data).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.errors import MissingFile, UserError
from pathray.files.sheet import Sheet, read_sheet
from pathray.store.storage import Storage
from regression.tables.places import Places

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]
NAMED_AT_MOST = 8


@dataclass(frozen=True)
class Table:
    """`names` `[N]` are the paths as written, `groups` `[N]`, `targets` `[N, K]` of the `genes`, in `unit` ("":
    unknown); read from `file`, with the line of each row in `lines` (empty: from line 2 on). `places` of the images in
    their sections, if the table has them."""

    file: str
    names: Strings
    groups: Strings
    targets: Floats
    genes: tuple[str, ...]
    places: Places | None = None
    unit: str = ""
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Absolute paths, or URLs, of the images."""
        folder = Storage.of(posixpath.dirname(self.file) or ".").url
        return [_below(folder, name) for name in self.names.tolist()]

    @property
    def hash(self) -> str:
        """Digest of all rows, independent of their order and of where the table is."""
        order = np.argsort(self.names)
        digest = hashlib.sha256("\x00".join(self.genes).encode())
        digest.update("\x00".join(self.names[order].tolist() + self.groups[order].tolist()).encode())
        digest.update(np.ascontiguousarray(self.targets[order]).tobytes())
        return digest.hexdigest()

    def row_of(self, index: int) -> int:
        """The line of a CSV, or the row (from 0) of a parquet table."""
        return self.lines[index] if self.lines else index + 2


def read_table(
    path: str,
    *,
    genes: Sequence[str] | None = None,
    target_dim: int | None = None,
    check_files: bool = True,
    constant_genes: bool = False,
) -> Table:
    """The table at a path or URL, completely checked. With `constant_genes` a gene may have one value in all rows: a
    model may be evaluated on a cohort in which one of its genes is silent, though it could not be trained there.

    `genes` names the target columns; the default is y0, y1 … `target_dim` is their required number.
    MissingFile for the table or an image; UserError naming file, row and column for missing columns, a wrong number of
    targets, empty cells, a duplicate path, a target that is not a finite number, genes that do not vary, coordinates
    that are not numbers, and several units.
    """
    sheet = read_sheet(path)
    sheet.need("path", "group_id")
    chosen = _targets(path, sheet.names, genes, target_dim)
    names, groups = (np.array(sheet.texts(name), np.str_) for name in ("path", "group_id"))
    sheet.check_spelling("group_id", "groups")
    values = np.column_stack([sheet.numbers(name, "not a finite target") for name in chosen])
    places, unit = _places(sheet, chosen, groups), _unit(sheet)
    table = Table(path, names, groups, values, chosen, places, unit, sheet.lines)
    _check(table, check_files, constant_genes)
    return table


def _targets(path: str, found: Sequence[str], genes: Sequence[str] | None, wanted: int | None) -> tuple[str, ...]:
    if genes is None:
        count = sum(name[:1] == "y" and name[1:].isdigit() for name in found)
        genes = [f"y{i}" for i in range(count)]
    if missing := [gene for gene in genes if gene not in found]:
        message = "the table lacks target columns"
        raise UserError(message, file=path, key=missing[0], found=missing[:NAMED_AT_MOST], expected="a column for each")
    if len(genes) == 0 or (wanted is not None and len(genes) != wanted):
        other = f"{wanted}, or target_dim={len(genes)} (data.target_dim in a training) if all of them are meant"
        expected = "y0, y1 …" if wanted is None or len(genes) == 0 else other
        raise UserError("wrong number of targets", file=path, key="targets", found=len(genes), expected=expected)
    if len(set(genes)) < len(genes):
        raise UserError("a gene is named twice", file=path, found=[g for g in genes if list(genes).count(g) > 1][:1])
    return tuple(genes)


def _places(sheet: Sheet, genes: Sequence[str], groups: Strings) -> Places | None:
    """The places of the table's images; a column that is a target is not used for them."""
    found = set(sheet.names) - set(genes)
    if not {"x", "y"} <= found:
        return None
    unknown = np.full(len(groups), np.nan)
    message = "not a finite coordinate or size"
    numbers = {
        name: sheet.numbers(name, message) if name in found else unknown
        for name in ("x", "y", "image_mpp", "radius_px")
    }
    for name in ("image_mpp", "radius_px"):
        if (bad := np.flatnonzero(numbers[name] <= 0)).size:
            raise sheet.cell_error("a size must be positive", int(bad[0]), name, "> 0")
    section = np.array(sheet.texts("section"), np.str_) if "section" in found else groups
    image = np.full(len(groups), "")
    if "image" in found:
        folder = Storage.of(posixpath.dirname(sheet.file) or ".").url
        image = np.array([_below(folder, name) if name else "" for name in sheet.texts("image", True)])
    return Places(numbers["x"], numbers["y"], section, image, numbers["image_mpp"], numbers["radius_px"])


def _unit(sheet: Sheet) -> str:
    if "unit" not in sheet.names:
        return ""
    units = sorted(set(sheet.texts("unit")))
    if len(units) > 1:
        raise UserError("targets have several units", file=sheet.file, key="unit", found=units[:NAMED_AT_MOST])
    return units[0]


def _check(table: Table, check_files: bool, constant_genes: bool) -> None:
    seen: dict[str, int] = {}
    for row, path in enumerate(table.paths):  # resolved: ./a.png is a.png
        if (first := seen.setdefault(path, row)) != row:
            found = f"{table.names[row]}, already in row {table.row_of(first)}"
            raise UserError("duplicate path", file=table.file, row=table.row_of(row), key="path", found=found)
    if len(table) > 1 and not constant_genes and (same := np.flatnonzero(np.ptp(table.targets, axis=0) == 0)).size:
        dull = [table.genes[k] for k in same[:NAMED_AT_MOST]]
        message = "targets do not vary over the rows: leave them out"
        raise UserError(message, file=table.file, key=dull[0], found=dull, expected="values that vary")
    if check_files:
        _check_files(table)


def _check_files(table: Table) -> None:
    """MissingFile for a missing image, also of a section; lists each folder once instead of checking each file."""
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
