"""The report of unreadable units: parts written by ranks while they train, merged into one `quarantine.parquet`.

A part is named by the positions it covers, so a run resumed at a position drops the parts beyond it: it will write them
again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.stream import Fault

FOLDER, MERGED = "quarantine", "quarantine.parquet"
SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("attempt", pa.int32()),
        ("row", pa.int64()),
        ("source", pa.int64()),
        ("source_name", pa.string()),
        ("reason", pa.string()),
        ("path", pa.string()),
        ("detail", pa.string()),
        ("benign", pa.bool_()),
    ]
)
_PART = re.compile(r"part-(\d+)-(\d+)-rank(\d+)\.parquet$")


def part_name(first: int, end: int, rank: int) -> str:
    """Name of a part under the run folder: what `rank` met between positions `first` and `end`."""
    return f"{FOLDER}/part-{first:014d}-{end:014d}-rank{rank:05d}.parquet"


def to_parquet(faults: Sequence[Fault], sources: pa.Table) -> bytes:
    """Faults as parquet bytes with an explicit schema. `sources` is the plan's table of slides or archives, whose first
    column names them: a read that hangs, say, is known by its slide only."""
    names = sources.column(0)
    rows = [asdict(f) | {"source_name": str(names[f.source]) if f.source >= 0 else None} for f in faults]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def sweep(store: Any, resumed_at: int) -> None:
    """Remove parts that end beyond the position a run resumes at."""
    for name in _parts(store):
        match = _PART.search(name)
        if match is not None and int(match.group(2)) > resumed_at:
            store.remove(name)


def merge(store: Any) -> int:
    """Write `quarantine.parquet` from all parts, ordered by position; returns how many units are not benign.

    Without any part, a report that an earlier attempt left is removed.
    """
    tables = [pq.read_table(io.BytesIO(store.read_bytes(name)), schema=SCHEMA) for name in _parts(store)]
    if not tables:
        store.remove(MERGED)
        return 0
    table = pa.concat_tables(tables).sort_by([("position", "ascending"), ("attempt", "ascending")])
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    store.write_bytes(MERGED, buffer.getvalue())
    return table.num_rows - int(sum(table["benign"].to_pylist()))


def _parts(store: Any) -> list[str]:
    if not store.exists(FOLDER):
        return []
    return sorted(f"{FOLDER}/{name}" for name in store.list(FOLDER) if _PART.search(name))
