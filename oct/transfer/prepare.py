"""Volumes of an index → the same files as lossless HTJ2K, with a manifest: what is to be done, and one volume of it.

Not here: the transcoding of a file (oct.transfer.transcode), Ray (ray_jobs.prepare_oct).
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from oct.indexing.index_file import VolumeIndex
from oct.indexing.manifest import COLUMNS
from oct.transfer.ledger import Row
from pathray.errors import UnreadableUnit, UserError
from pathray.reports.units import describe
from pathray.store.outages import read_through_outages, through_outages
from pathray.store.storage import Storage, StorageError, file_state, write_atomic
from pathray.urls import is_url
from pathray.wsi.backends.source import read_source, retry_request

LEDGER = "_preparation"
SCHEMA = pa.schema(
    [("path", pa.string()), ("source_state", pa.string()), ("state", pa.string()), ("bytes_before", pa.int64()),
     ("bytes", pa.int64()), ("syntax_before", pa.string()), ("status", pa.string()), ("error", pa.string())]
)  # fmt: skip
WRITTEN, COPIED, KEPT, FAILED = "written", "copied", "kept", "failed"
UNSAID = "Not reported"


@dataclass(frozen=True)
class VolumeJob:
    """A volume of the index (path below both roots), and the row of an earlier start that prepared it."""

    path: str
    source: str
    target: str
    state: str
    syntax: str
    before: Row | None = None


def plan_preparation(index: VolumeIndex, output: str, known: Mapping[str, Row]) -> list[VolumeJob]:
    """A job per accepted volume. UserError if the output is where the volumes are: they would be overwritten."""
    if _place(output) == _place(index.root):
        message = "the output is the folder of the volumes, which it would overwrite"
        raise UserError(message, file=index.path, key="output", found=output, expected="another folder")
    return [
        VolumeJob(
            row["path"],
            f"{index.root.rstrip('/')}/{row['path']}",
            f"{output.rstrip('/')}/{row['path']}",
            row["state"],
            row["transfer_syntax_uid"] or "",
            known.get(row["path"]),
        )
        for row in index.accepted.to_pylist()
    ]


def _place(folder: str) -> str:
    """The one name of a folder, links followed."""
    store = Storage.of(folder)
    return os.path.realpath(store.path()) if store.local else store.url.rstrip("/")


def prepare_volume(job: VolumeJob) -> Row:
    """Write a volume, unless this version of it was; its row. A fault of the volume is in the row; StorageError if it
    cannot be written."""
    from oct.transfer.transcode import transcode

    try:
        source_state = read_through_outages(lambda: _state(job.source), "the storage of volumes")
        if _is_known(job, source_state):
            assert job.before is not None
            return {**job.before, "status": KEPT}
        data = read_through_outages(lambda: read_source(job.source), "the storage of volumes")
        result = transcode(data, job.source)
    except UnreadableUnit as e:
        return _row(job, FAILED, f"{e.reason}: {e.detail}".rstrip(": "))
    except StorageError:
        raise
    except (UserError, OSError) as e:
        return _row(job, FAILED, describe(e))
    through_outages(lambda: write_atomic(job.target, result), "a prepared volume")
    status = COPIED if result is data else WRITTEN
    row = _row(job, status, source_state=source_state, state=_state(job.target))
    return row | {"bytes_before": len(data), "bytes": len(result)}


def lost_volume(job: VolumeJob, error: Exception) -> Row:
    """The row of a volume on which the process died."""
    return _row(job, FAILED, f"preparing it {error}")


def write_manifest(path: str, index: VolumeIndex, rows: Sequence[Row]) -> int:
    """A manifest.tsv as AI-READI has it, of the volumes that are there; their number. It says no assumed spacing."""
    there = {row["path"] for row in rows if row["status"] != FAILED}
    kept = [row for row in index.accepted.to_pylist() if row["path"] in there]
    others = ("imaging", "reference_instance_uid", "reference_filepath")
    text = io.StringIO()
    writer = csv.DictWriter(text, ["person_id", *COLUMNS, *others], restval=UNSAID, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in kept)
    write_atomic(path, text.getvalue().encode())
    return len(kept)


def closing_line(index: VolumeIndex, rows: Sequence[Row]) -> str:
    """Counts that add up, and sizes before and after."""
    counts = Counter(row["status"] for row in rows)
    shown = " + ".join(f"{counts[status]:,} {status}" for status in (WRITTEN, COPIED, KEPT, FAILED))
    excluded = sum(index.reasons.values())
    before, after = (sum(row[name] or 0 for row in rows) for name in ("bytes_before", "bytes"))
    ratio = f", {after / before:.2f} of the size" if before else ""
    return f"{len(rows) + excluded:,} listed = {shown} + {excluded:,} excluded{ratio}"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    said = {axis: row[f"source_{axis}"] != "assumed" for axis in "zyx"}
    spacing = [row[f"spacing_{axis}_mm"] for axis in "zyx"]
    cells = {
        "person_id": row["person"],
        "manufacturer": row["manufacturer"],
        "manufacturers_model_name": row["model"],
        "anatomic_region": row["region"],
        "imaging": "OCT",
        "laterality": row["laterality_manifest"],
        "height": row["rows"],
        "width": row["columns"],
        "number_of_frames": row["frames"],
        "pixel_spacing": f"[{spacing[1]!r}, {spacing[2]!r}]" if said["y"] and said["x"] else "",
        "slice_thickness": repr(spacing[0]) if said["z"] else "",
        "sop_instance_uid": row["sop_instance_uid"],
        "filepath": f"/{row['path']}",
    }
    return {name: str(value) if value not in (None, "") else UNSAID for name, value in cells.items()}


def _is_known(job: VolumeJob, source_state: str) -> bool:
    if job.before is None or job.before["source_state"] != source_state:
        return False
    try:
        return bool(_state(job.target) == job.before["state"])
    except FileNotFoundError:
        return False


def _state(path: str) -> str:
    return retry_request(path, lambda: file_state(path)) if is_url(path) else file_state(path)


def _row(job: VolumeJob, status: str, error: str = "", *, source_state: str = "", state: str = "") -> Row:
    return {
        "path": job.path,
        "source_state": source_state,
        "state": state,
        "bytes_before": 0,
        "bytes": 0,
        "syntax_before": job.syntax,
        "status": status,
        "error": error,
    }
