"""Reads the slide manifest: a CSV `slide_id,wsi_path,mask_path` plus free metadata columns. Opens no slide.

A fault of the whole file (a missing column, no rows) is a UserError. A fault of one row (a duplicate id, an invalid
`mpp`) is stored in that row's `error`, so that it fails one line of the report and not the whole job.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pathray.errors import UserError
from pathray.files.csv_rows import check_header, plain_number, records, spelling
from pathray.files.text import read_user_text
from pathray.urls import holds_secret, public

REQUIRED = ("slide_id", "wsi_path", "mask_path")


@dataclass(frozen=True)
class ManifestRow:
    """One slide. Paths are absolute or URLs; for `mask_path` "" a tissue mask is computed."""

    number: int  # line of the file, the header being line 1
    slide_id: str
    wsi_path: str
    mask_path: str = ""
    mpp: float | None = None
    metadata: dict[str, str | None] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Manifest:
    path: str
    rows: tuple[ManifestRow, ...]
    metadata_columns: tuple[str, ...]

    def __iter__(self) -> Iterator[ManifestRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def read_manifest(path: str, *, reserved: Sequence[str] = ()) -> Manifest:
    """The slides of a manifest CSV (UTF-8, with or without a byte-order mark), in file order.

    Relative paths are resolved against the manifest's own folder; the file itself may be a URL. `reserved` are names
    that a metadata column must not have. Raises MissingFile, and UserError for a missing or repeated column, a reserved
    name, a URL that contains a secret, or no rows.
    """
    path = os.fspath(path)
    numbered = records(path, read_user_text(path, "slide manifest"), ",")
    line, header = next(numbered, (1, []))
    header = [name.strip() for name in header]
    if not header:
        raise UserError("the manifest is empty", file=path, expected=",".join(REQUIRED))
    check_header(path, line, header, ",", "manifest")
    _check_header(header, path, reserved)
    metadata_columns = tuple(c for c in header if c not in REQUIRED)
    seen: dict[str, tuple[int, str]] = {}
    rows = []
    for number, cells in numbered:
        if any(cell.strip() for cell in cells):
            rows.append(_row(number, [c.strip() for c in cells], header, path, seen))
    if not rows:
        raise UserError("the manifest has no slides", file=path, found="a header only", expected="one row per slide")
    _refuse_secrets(path, tuple(rows))
    return Manifest(path, tuple(rows), metadata_columns)


def _refuse_secrets(path: str, rows: tuple[ManifestRow, ...]) -> None:
    """UserError for a URL with a login or a signature in it: it would be stored in index, catalog, plan and bags."""
    for row in rows:
        for column, cell in {"wsi_path": row.wsi_path, "mask_path": row.mask_path, **row.metadata}.items():
            if cell and holds_secret(cell):
                raise UserError(
                    "the URL contains a login or a signature, which the index would store",
                    file=public(path),
                    row=row.number,
                    key=column,
                    found=public(cell),
                    expected="the URL without it (gs://…, s3://…), and the credentials in the environment",
                )


def resolve(path: str, folder: str) -> str:
    """`path` as it is when absolute, a URL or empty, else under `folder` (itself a local folder or a URL).

    >>> resolve("a/b.svs", "gs://bucket/cohort"), resolve("gs://x/y.svs", "/data")
    ('gs://bucket/cohort/a/b.svs', 'gs://x/y.svs')
    """
    if not path or "://" in path or os.path.isabs(path):
        return path
    if "://" in folder:
        scheme, rest = folder.split("://", 1)
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, path))}"
    return os.path.normpath(os.path.join(folder, path))


def folder_of(path: str) -> str:
    """The folder (absolute, or a URL) that holds `path`."""
    return path.rsplit("/", 1)[0] if "://" in path else os.path.dirname(os.path.abspath(path))


def _check_header(header: list[str], path: str, reserved: Sequence[str]) -> None:
    for name in REQUIRED:
        if name not in header:
            hint = " (its cells may be empty: a mask is then computed)" if name == "mask_path" else ""
            message = f"the manifest lacks a required column{hint}"
            raise UserError(message, file=path, key=name, found=",".join(header), expected=",".join(REQUIRED))
    if "" in header:
        raise UserError("a column of the manifest has no name", file=path, row=1, found=",".join(header))
    if clashing := sorted(set(header) & (set(reserved) - set(REQUIRED))):
        message = "a metadata column has a name that the slide index reserves: rename it"
        raise UserError(message, file=path, key=clashing[0], found=clashing)


def _row(number: int, cells: list[str], header: list[str], path: str, seen: dict[str, tuple[int, str]]) -> ManifestRow:
    folder = folder_of(path)
    named = dict(zip(header, cells, strict=False))
    slide_id = named.get("slide_id", "")
    metadata = {c: named.get(c) or None for c in header if c not in REQUIRED}
    mpp, error = _mpp(named.get("mpp", ""), number)
    if len(cells) != len(header):
        error = f"row {number} has {len(cells)} cells, the header {len(header)}"
    elif not slide_id:
        error = f"row {number} has no slide_id"
    elif not named["wsi_path"]:
        error = f"row {number} has no wsi_path"
    elif (first := seen.get(spelling(slide_id))) is not None:
        error = f"duplicate slide_id: {slide_id!r} in row {number} is already in row {first[0]}"
        error += f", spelt {first[1]!r}" if first[1] != slide_id else ""
    seen.setdefault(spelling(slide_id), (number, slide_id))
    wsi_path, mask_path = (resolve(named.get(c, ""), folder) for c in ("wsi_path", "mask_path"))
    return ManifestRow(number, slide_id, wsi_path, mask_path, mpp, metadata, error)


def _mpp(cell: str, number: int) -> tuple[float | None, str]:
    if not cell:
        return None, ""
    value = plain_number(cell)
    if value is not None and value > 0:
        return value, ""
    return None, f"row {number}: mpp is {cell!r}, expected micrometres per pixel, a number > 0"
