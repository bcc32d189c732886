"""The report of unreadable units: parts written by ranks while they train, merged into one `quarantine.parquet`.

A part is named by the positions it covers, so a run resumed at a position drops the parts beyond it: it will write them
again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pathray.data.faults import Fault
from pathray.reports.progress import Progress
from pathray.run.fence import Superseded
from pathray.run.layout import QUARANTINE, QUARANTINE_REPORT
from pathray.store.sealed_parquet import of_bytes, to_bytes

log = logging.getLogger(__name__)
THREADS, TOGETHER = 16, 256  # that fetch parts, and parts fetched before they are joined
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
    return f"{QUARANTINE}/part-{first:014d}-{end:014d}-rank{rank:05d}.parquet"


def to_parquet(faults: Sequence[Fault], sources: pa.Table) -> bytes:
    """Faults as parquet bytes with an explicit schema. `sources` is the plan's table of slides or archives, whose first
    column names them: a read that hangs, say, is known by its slide only."""
    names = sources.column(0)
    rows = [asdict(f) | {"source_name": str(names[f.source]) if f.source >= 0 else None} for f in faults]
    return to_bytes(pa.Table.from_pylist(rows, SCHEMA))


class Faults:
    """What one rank could not read since its last save, positions from `since` on. `guard` is called before each write:
    it raises when another start owns the run."""

    def __init__(self, store: Any, sources: pa.Table, rank: int, guard: Callable[[], None] = lambda: None) -> None:
        self.store, self.sources, self.rank, self.guard = store, sources, rank, guard
        self.found: list[Fault] = []
        self.since = 0

    def write(self, images_seen: int) -> None:
        """Leave a part for the positions up to `images_seen`, if there is anything to tell."""
        if self.found:
            end = max(images_seen, 1 + max(f.position for f in self.found))
            part = to_parquet(self.found, self.sources)
            self.guard()
            self.store.write_bytes(part_name(self.since, end, self.rank), part)
        self.since, self.found = images_seen, []

    def keep(self, error: Exception, images_seen: int) -> None:
        """What made the run end is in the report, too."""
        self.found += getattr(error, "faults", ())
        try:
            self.write(images_seen)
        except (OSError, Superseded) as e:
            log.warning("the newest rows of the quarantine report could not be written: %s", e)


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
    names = _parts(store)
    if not names:
        store.remove(QUARANTINE_REPORT)
        return 0
    table = _all(store, names).sort_by([("position", "ascending"), ("attempt", "ascending")])
    store.write_bytes(QUARANTINE_REPORT, to_bytes(table))
    return int(table.num_rows - sum(table["benign"].to_pylist()))


def merge_after_failure(store: Any) -> None:
    """`merge` of a run that failed: what is wrong with the report must not hide what ended the run."""
    try:
        merge(store)
    except OSError as e:
        log.warning("the quarantine report could not be written: %s", e)


def _all(store: Any, names: list[str]) -> pa.Table:
    """The parts in one table, in the order of their names, fetched by a few threads; what many parts take is shown.

    They are joined by TOGETHER: a table of its own for each of many thousand small parts would be mostly overhead.
    """

    def read(name: str) -> pa.Table:
        return of_bytes(store.read_bytes(name), store.join(name), "part of the quarantine report").cast(SCHEMA)

    tables = []
    shown = Progress(len(names), "quarantine report", "parts") if len(names) > TOGETHER else nullcontext()
    with ThreadPoolExecutor(THREADS, "pathray-quarantine") as pool, shown as progress:
        for start in range(0, len(names), TOGETHER):
            some = names[start : start + TOGETHER]
            tables.append(pa.concat_tables(pool.map(read, some)).combine_chunks())
            if progress is not None:
                progress.update(len(some))
    return pa.concat_tables(tables)


def _parts(store: Any) -> list[str]:
    if not store.exists(QUARANTINE):
        return []
    return sorted(f"{QUARANTINE}/{name}" for name in store.list(QUARANTINE) if _PART.search(name))
