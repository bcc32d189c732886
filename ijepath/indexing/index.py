"""The slide index: sizes, spacings and file states, one row per slide, failed ones too.

`index_slide` works on one slide; `index_slides` runs it over a manifest through any ordered map. Not here: Ray, the
manifest (ijepath.indexing.manifest) and tissue (ijepath.indexing.anchors).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from ijepath.indexing.manifest import Manifest, ManifestRow, folder_of
from pathray.errors import MissingFile, UserError
from pathray.reports.units import describe
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage, file_state, write_atomic
from pathray.urls import is_url, public
from pathray.wsi.backends.header import disagree
from pathray.wsi.reader import SlideReader, open_mask, open_slide
from pathray.wsi.spacing import level_mpps

SCHEMA_VERSION = 1
ASPECT_TOLERANCE = 0.02  # of the ratio of the two mask scales, on top of one mask pixel of rounding

_SHAPES = pa.list_(pa.list_(pa.int64()))
_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("slide_id", pa.string()),
    ("wsi_path", pa.string()),
    ("mask_path", pa.string()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("wsi_level0_width", pa.int64()),
    ("wsi_level0_height", pa.int64()),
    ("wsi_level0_spacing_mpp", pa.float64()),
    ("spacing_source", pa.string()),
    ("wsi_shapes", _SHAPES),
    ("wsi_spacings_mpp", pa.list_(pa.float64())),
    ("mask_level0_width", pa.int64()),
    ("mask_level0_height", pa.int64()),
    ("mask_level0_spacing_mpp", pa.float64()),
    ("mask_shapes", _SHAPES),
    ("mask_spacings_mpp", pa.list_(pa.float64())),
    ("mask_to_wsi_scale_x", pa.float64()),
    ("mask_to_wsi_scale_y", pa.float64()),
    ("backend", pa.string()),
    ("wsi_state", pa.string()),
    ("mask_state", pa.string()),
    ("spacing_note", pa.string()),  # which other source contradicts the spacing; "" where none does
)
COLUMNS = tuple(name for name, _ in _FIELDS)
PROBED = COLUMNS[3:]  # what is not in the manifest
REPORT_COLUMNS = ("slide_id", "wsi_path", "mask_path", "status", "error")

Row = dict[str, Any]
OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def schema(metadata_columns: Sequence[str] = ()) -> pa.Schema:
    """The index's Arrow schema: fixed columns, then the manifest's own as strings. It never depends on the rows."""
    return pa.schema([*_FIELDS, *((name, pa.string()) for name in metadata_columns)])


def index_slides(
    manifest: Manifest,
    *,
    previous: Iterable[Mapping[str, Any]] = (),
    backend: str = "auto",
    map: OrderedMap = map,
) -> Iterator[Row]:
    """One index row per manifest row, in manifest order, as soon as each is ready.

    `map` is any ordered map (the builtin, a pool's `imap`, Ray's); the function passed to it is picklable. `previous`
    are rows of an older index: ok ones whose files and `mpp` did not change are reused without opening the slide.
    """
    known = {row["slide_id"]: dict(row) for row in previous if row["status"] == "ok"}
    jobs = [(row, known.get(row.slide_id)) for row in manifest]
    yield from map(partial(_index_job, backend=backend), jobs)


def _index_job(job: tuple[ManifestRow, Row | None], *, backend: str) -> Row:
    row, previous = job
    return index_slide(row, previous=previous, backend=backend)


def index_slide(row: ManifestRow, *, previous: Row | None = None, backend: str = "auto") -> Row:
    """The index row of one slide. Any fault of the slide becomes status "failed" and `error`; nothing is raised."""
    out = _blank(row)
    try:
        if row.error:
            raise UserError(row.error)
        out["wsi_state"] = file_state(row.wsi_path)
        out["mask_state"] = file_state(row.mask_path) if row.mask_path else ""
        if previous is not None and _is_unchanged(previous, out):
            return {c: previous[c] for c in COLUMNS} | row.metadata
        return out | _wsi_columns(row, backend) | {"status": "ok", "error": ""}
    except AssertionError:
        raise
    except Exception as error:  # whatever a decoder raises is a failure of this slide, not of the job
        return out | {"status": "failed", "error": describe(error)}


def failed_row(row: ManifestRow, error: str) -> Row:
    """The index row of a slide of which only the error is known."""
    return _blank(row) | {"status": "failed", "error": error}


def _blank(row: ManifestRow) -> Row:
    return dict.fromkeys(COLUMNS) | _manifest_columns(row)


def _manifest_columns(row: ManifestRow) -> Row:
    return {"slide_id": row.slide_id, "wsi_path": row.wsi_path, "mask_path": row.mask_path} | row.metadata


def _is_unchanged(previous: Row, now: Row) -> bool:
    """Whether an earlier ok row still holds: same files, same `mpp` override. Other metadata may have changed."""
    same = ("wsi_path", "mask_path", "wsi_state", "mask_state")
    return previous.get("mpp") == now.get("mpp") and all(previous[c] == now[c] for c in same)


def _wsi_columns(row: ManifestRow, backend: str) -> Row:
    reader = open_slide(row.wsi_path, backend=backend)
    try:
        mpp0, source, note = _spacing(row, reader)
        _probe(reader)
        width, height = reader.level_shapes[0]
        columns = {
            "wsi_level0_width": width,
            "wsi_level0_height": height,
            "wsi_level0_spacing_mpp": mpp0,
            "spacing_source": source,
            "spacing_note": note,
            "wsi_shapes": [list(shape) for shape in reader.level_shapes],
            "wsi_spacings_mpp": list(level_mpps(reader, mpp0)),
            "backend": reader.backend,
        }
    finally:
        reader.close()
    return columns | (_mask_columns(row, width, height, mpp0) if row.mask_path else {})


def _spacing(row: ManifestRow, reader: SlideReader) -> tuple[float, str, str]:
    """µm per pixel of level 0, its source, and a note if another source contradicts it."""
    if row.mpp is not None:
        return row.mpp, "manifest", _contradiction(row.mpp, reader)
    if reader.mpp is None or reader.mpp_source is None:
        message = "the slide does not say its pixel size: add an `mpp` column (micrometres per pixel) to the manifest"
        raise UserError(
            message, file=public(row.wsi_path), row=row.number, key="mpp", found=reader.spacing_note or None
        )
    return reader.mpp, reader.mpp_source, reader.spacing_note


def _contradiction(mpp: float, reader: SlideReader) -> str:
    if reader.mpp is None or not disagree(mpp, reader.mpp):
        return ""
    said = "header says" if reader.mpp_source == "header" else "tags say"
    return f"the manifest says {mpp:.4g} µm per pixel, the {said} {reader.mpp:.4g}"


def _mask_columns(row: ManifestRow, width: int, height: int, mpp0: float) -> Row:
    reader = open_mask(row.mask_path)
    try:
        _probe(reader)
        shapes = [list(shape) for shape in reader.level_shapes]
    finally:
        reader.close()
    mask_width, mask_height = shapes[0]
    scale_x, scale_y = width / mask_width, height / mask_height
    if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE + 1 / min(mask_width, mask_height):
        raise UserError(
            f"mask and slide differ in aspect ratio (tolerance {ASPECT_TOLERANCE:.0%} and one mask pixel)",
            file=public(row.mask_path),
            row=row.number,
            key="mask_path",
            found=f"{mask_width} x {mask_height}, ratio {mask_width / mask_height:.4f}",
            expected=f"the ratio of {width} x {height}, {width / height:.4f}",
        )
    return {
        "mask_level0_width": mask_width,
        "mask_level0_height": mask_height,
        "mask_level0_spacing_mpp": mpp0 * scale_x,
        "mask_shapes": shapes,
        "mask_spacings_mpp": [mpp0 * width / w for w, _ in shapes],
        "mask_to_wsi_scale_x": scale_x,
        "mask_to_wsi_scale_y": scale_y,
    }


def _probe(reader: SlideReader) -> None:
    """Decode the last pixel of every level: a truncated or undecodable file fails here."""
    for level, (width, height) in enumerate(reader.level_shapes):
        reader.read_level(level, width - 1, height - 1, 1, 1)


@dataclass(frozen=True)
class SlideIndex:
    """An index in memory, in manifest order."""

    rows: tuple[Row, ...]
    metadata_columns: tuple[str, ...] = ()

    @property
    def failed_rows(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row["status"] != "ok")


def keep_first_results(index: SlideIndex, begun: Iterable[Row]) -> SlideIndex:
    """`index` for a resumed run that started with the rows `begun`: the set of its slides is fixed.

    A slide that failed then, or fails now, keeps its values of then; its paths and metadata are the current ones.
    """
    before = dict(_by_occurrence(begun))
    rows = []
    for key, row in _by_occurrence(index.rows):
        old = before.get(key, row)
        settled = row["status"] == old["status"] == "ok"
        rows.append(row if settled else row | {c: old[c] for c in PROBED})
    return replace(index, rows=tuple(rows))


def _by_occurrence(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
    """Rows by (slide_id, occurrence): a manifest may repeat an id."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["slide_id"]] += 1
        yield (row["slide_id"], seen[row["slide_id"]]), row


def write_index(path: str, index: SlideIndex) -> None:
    """Publish the index as one parquet file, atomically. Equal rows give equal bytes."""
    layout = schema(index.metadata_columns).with_metadata({"schema_version": str(SCHEMA_VERSION)})
    rows = [{name: row.get(name) for name in layout.names} for row in index.rows]
    write_atomic(path, to_bytes(pa.Table.from_pylist(rows, schema=layout)))


def read_index(path: str) -> SlideIndex:
    """The index at `path`. MissingFile if there is none; UserError for another file or a newer version."""
    store, name = Storage.of(folder_of(path)), os.path.basename(path)
    if not store.exists(name):
        raise MissingFile(
            "no slide index here", file=path, expected="the parquet file that ray_jobs.index_slides writes"
        )
    table = of_bytes(store.read_bytes(name), path, "slide index")
    version = int((table.schema.metadata or {}).get(b"schema_version", 0))
    if version > SCHEMA_VERSION:
        message = "the slide index was written by a newer version"
        raise UserError(message, file=path, key="schema_version", found=version, expected=SCHEMA_VERSION)
    if "spacing_note" not in table.column_names:  # an index from before that column
        table = table.add_column(
            min(len(COLUMNS) - 1, table.num_columns), "spacing_note", pa.nulls(table.num_rows, pa.string())
        )
    if lacking := [c for c in COLUMNS if c not in table.column_names]:
        raise UserError("not a slide index", file=path, key=lacking[0], found=table.column_names)
    return SlideIndex(tuple(table.to_pylist()), tuple(table.column_names[len(COLUMNS) :]))


def is_current(path: str, manifest: Manifest) -> bool:
    """Whether indexing `manifest` again would give the index at `path`: same slides and metadata, all ok, same files.

    No slide is opened; remote files, which take a request each, are not checked.
    """
    try:
        index = read_index(path)
    except UserError:
        return False
    if index.failed_rows or index.metadata_columns != manifest.metadata_columns or len(index.rows) != len(manifest):
        return False
    return all(_matches(known, row) for known, row in zip(index.rows, manifest, strict=True))


def _matches(known: Row, row: ManifestRow) -> bool:
    if row.error or any(known[k] != v for k, v in _manifest_columns(row).items()):
        return False
    local = [(c, known[f"{c}_path"]) for c in ("wsi", "mask") if known[f"{c}_path"] and not is_url(known[f"{c}_path"])]
    try:
        return all(file_state(path) == known[f"{c}_state"] for c, path in local)
    except MissingFile:
        return False
