"""The index of volumes: a row per file of the manifest, with what its header says and why it is left out, if it is.

`index_volume` reads one file; `index_volumes` runs it over a manifest through any ordered map. A row is accepted if its
`exclusion` is empty. What a scan *is* decides (the header), never its name. Not here: the header (oct.dicom.header),
the manifest's format (oct.indexing.manifest), the index as a file (oct.indexing.index_file).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from oct.indexing.devices import device_by_folder, device_by_name, device_of
from oct.indexing.head import read_file_header
from oct.indexing.manifest import Manifest, ManifestRow, Spacing
from oct.volume import AXES, VolumeHeader
from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit
from pathray.reports.units import describe
from pathray.store.outages import read_through_outages
from pathray.store.storage import file_state
from pathray.store.storage_errors import may_pass

MISSING, UNREADABLE, DUPLICATE = "missing", "unreadable", "duplicate"
NOT_READ = (MISSING, UNREADABLE)  # exclusions of files without a header: the next start tries them again
NO_RASTER = ("circular", "radial")  # exclusions
NAMED_AS_CIRCLE = re.compile(r"(?:^|_)(?:rc|radial|circle|circular|circ)(?:[_.]|$)")

Row = dict[str, Any]
ReadHeader = Callable[[str, Spacing], tuple[VolumeHeader, int]]  # header, and size of the file in bytes
OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Job = tuple[ManifestRow, Row | None]


def index_volumes(
    manifest: Manifest,
    *,
    previous: Iterable[Mapping[str, Any]] = (),
    read_header: ReadHeader = read_file_header,
    map: OrderedMap = map,
) -> Iterator[Row]:
    """An index row per manifest row, in its order, as soon as each is ready; pass them to `mark_duplicates`.

    `map` is any ordered map; the function passed to it is picklable. `previous`: rows of an older index of the same
    root; those of files that did not change, nor what the manifest says of them, are reused without reading the file.
    """
    known = {row["path"]: dict(row) for row in previous if row["exclusion"] not in NOT_READ}
    jobs = ((row, known.get(row.path)) for row in manifest.rows)
    yield from map(partial(_index_job, root=manifest.root, read_header=read_header), jobs)


def _index_job(job: Job, *, root: str, read_header: ReadHeader) -> Row:
    read = partial(index_volume, job[0], root, previous=job[1], read_header=read_header)
    return read_through_outages(read, "the storage of volumes")


def index_volume(
    row: ManifestRow, root: str, *, previous: Row | None = None, read_header: ReadHeader = read_file_header
) -> Row:
    """The index row of one file. Any fault of the file becomes its `exclusion` and `detail`. UnreachableUnit while
    its storage is away, which is no fault of the file."""
    path, out = f"{root.rstrip('/')}/{row.path}", _listed_columns(row)
    try:
        out["state"] = file_state(path)
        if previous is not None and all(previous[name] == out[name] for name in ("state", "listed")):
            return _as_read(previous) | {"line": row.line}
        header, out["bytes"] = read_header(path, row.spacing_mm)
        return out | _header_columns(row, header)
    except AssertionError:
        raise
    except MissingFile:
        return out | {"exclusion": MISSING, "detail": "no such file"}
    except UnreachableUnit:
        raise
    except UnreadableUnit as e:
        return out | {"exclusion": UNREADABLE, "detail": f"{e.reason}: {e.detail}".rstrip(": ")}
    except Exception as e:  # whatever a parser raises is a fault of this file, not of the job
        if "://" in path and may_pass(e):
            raise UnreachableUnit(path, describe(e)) from e
        return out | {"exclusion": UNREADABLE, "detail": describe(e)}


def lost_row(job: Job, error: Exception) -> Row:
    """The index row of a file on which the reading process died."""
    return _listed_columns(job[0]) | {"exclusion": UNREADABLE, "detail": f"reading this file {error}"}


def mark_duplicates(rows: Sequence[Row]) -> list[Row]:
    """The rows; where several accepted ones have one SOP instance, or are one file, the later ones are excluded."""
    first: dict[str, Row] = {}
    out = []
    for row in rows:
        if not row["exclusion"]:
            keys = [key for key in (row["path"], row["sop_instance_uid"]) if key]
            if earlier := next((first[key] for key in keys if key in first), None):
                row = row | {"exclusion": DUPLICATE, "detail": _describe_duplicate(row, earlier)}
            else:
                first |= dict.fromkeys(keys, row)
        out.append(row)
    return out


def _describe_duplicate(row: Row, earlier: Row) -> str:
    what = "is this file" if row["path"] == earlier["path"] else "has this SOP instance"
    person = f" of person {earlier['person']}" if row["person"] != earlier["person"] else ""
    return f"row {earlier['line']}{person} {what}, too"


def _as_read(row: Row) -> Row:
    """A row as it was before `mark_duplicates`."""
    return row | {"exclusion": "", "detail": ""} if row["exclusion"] == DUPLICATE else row


def _listed_columns(row: ManifestRow) -> Row:
    """What the manifest says. `listed` is a digest of it."""
    facts = {name: value for name, value in asdict(row).items() if name != "line"}
    return {
        "line": row.line,
        "path": row.path,
        "person": row.person,
        "device": row.device,
        "region": row.region,
        "laterality": row.laterality,
        "laterality_manifest": row.laterality,
        "manufacturer": row.manufacturer,
        "model": row.model,
        "sop_instance_uid": row.sop_instance_uid,
        "listed": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
        "exclusion": "",
        "detail": "",
    }


def _header_columns(row: ManifestRow, header: VolumeHeader) -> Row:
    geometry = header.geometry
    manufacturer, model = row.manufacturer or header.manufacturer, row.model or header.model
    eyes = {row.laterality, header.laterality} - {""}
    return {
        "device": device_of(row.path, manufacturer, model),
        "manufacturer": manufacturer,
        "model": model,
        "laterality": eyes.pop() if len(eyes) == 1 else "",
        "laterality_header": header.laterality,
        "laterality_differs": len({row.laterality, header.laterality} - {""}) == 2,
        "frames": header.frames,
        "rows": header.rows,
        "columns": header.columns,
        "bits": header.bits_stored,
        "signed": header.signed,
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "sop_class_uid": header.sop_class_uid,
        "sop_instance_uid": header.sop_instance_uid or row.sop_instance_uid,
        **{f"spacing_{axis}_mm": value for axis, value in zip(AXES, geometry.spacing_mm, strict=True)},
        **{f"source_{axis}": source for axis, source in zip(AXES, geometry.sources, strict=True)},
        "reordered": geometry.order != tuple(range(len(geometry.order))),
        "irregular": geometry.offsets_mm is not None,
        "exclusion": header.exclusion,
        "notes": "; ".join(dict.fromkeys([*header.notes, *geometry.notes, *_notes(row, header)])),
    }


def _notes(row: ManifestRow, header: VolumeHeader) -> Iterator[str]:
    """What the manifest and the file's name say that the header does not."""
    by_folder = device_by_folder(row.path.split("/")[:-1])
    by_name = device_by_name(row.manufacturer or header.manufacturer, row.model or header.model)
    if by_folder and by_name and by_folder != by_name:
        yield f"the folder says {by_folder}, manufacturer and model {by_name}"
    if {row.laterality, header.laterality} == {"L", "R"}:
        yield f"the manifest says eye {row.laterality}, the header {header.laterality}"
    listed, found = (row.frames, row.height, row.width), (header.frames, header.rows, header.columns)
    if any(value not in (None, size) for value, size in zip(listed, found, strict=True)):
        said = "×".join("?" if value is None else str(value) for value in listed)
        yield f"the manifest says {said}, the header {'×'.join(map(str, found))}"
    if row.sop_instance_uid and header.sop_instance_uid not in ("", row.sop_instance_uid):
        yield "the header has another SOP instance than the manifest"
    if header.exclusion not in NO_RASTER and NAMED_AS_CIRCLE.search(posixpath.basename(row.path).lower()):
        yield "named as a radial or circular scan, of which the header says nothing"
