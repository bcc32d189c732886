"""What an index says to its user: the section of summary.md, the lines of the log, the verdict on unreadable files.

Not here: the figures per device (oct.indexing.statistics).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oct.indexing.index import NOT_READ
from oct.indexing.index_file import VolumeIndex
from oct.indexing.statistics import statistics, text_table
from oct.volume import Grid
from pathray.errors import UserError
from pathray.reports.summary import Summary
from pathray.urls import public

SHOWN = 10


def lines_of(index: VolumeIndex, grid: Grid) -> Iterable[str]:
    """What the log says, the counts last."""
    if index.accepted.num_rows:
        yield f"volumes:\n{text_table(statistics(index.accepted, grid))}"
    if differ := _count(index, "laterality_differs"):
        yield f"{differ:,} files: manifest and header name different eyes; their laterality is left open"
    yield str(index)


def summary_of(index: VolumeIndex, source: str, grid: Grid) -> Summary:
    """The summary.md of an index made from the manifest, or folder, `source`."""
    rows = index.table.to_pylist()
    facts: dict[str, object] = {"listed": len(rows), "accepted": index.accepted.num_rows}
    facts |= {f"excluded: {reason}": count for reason, count in sorted(index.reasons.items())}
    for device in statistics(index.accepted, grid):
        facts[device.device] = (
            f"{device.volumes:,} volumes of {device.persons:,} persons, {device.image_share:.1%} of the grid is image"
        )
    why = [(row["path"], row["exclusion"] + (f": {row['detail']}" if row["detail"] else "")) for row in rows]
    read = [row["exclusion"] not in NOT_READ for row in rows]
    return Summary(
        f"Index of volumes {index.path.rpartition('/')[2]}",
        {"source": source, **facts},
        {"grid": f"{grid.shape} of {grid.spacing_mm} mm"},
        failed=[own for own, is_read in zip(why, read, strict=True) if not is_read],
        skipped=[own for own, is_read, row in zip(why, read, rows, strict=True) if is_read and row["exclusion"]],
        notes=[(row["path"], row["notes"]) for row in rows if row["notes"]],
        files={"index": index.path},
    )


def check_readable(index: VolumeIndex, allowed: float, key: str = "max_unreadable_fraction") -> None:
    """UserError, showing the first ones, if more than the `allowed` fraction of the files could not be read. `key` says
    the fraction."""
    rows = [row for row in index.table.to_pylist() if row["exclusion"] in NOT_READ]
    if len(rows) <= allowed * index.table.num_rows:
        return
    shown = [f"row {row['line']}, {row['path']}: {row['exclusion']}, {row['detail']}" for row in rows[:SHOWN]]
    more = [f"and {len(rows) - SHOWN} more"] * (len(rows) > SHOWN)
    raise UserError(
        f"{len(rows)} of {index.table.num_rows} files could not be read:\n  " + "\n  ".join([*shown, *more]) + "\n",
        file=public(index.path),
        key=key,
        found=round(len(rows) / index.table.num_rows, 4),
        expected=f"at most {allowed}",
    )


def _count(index: VolumeIndex, column: str) -> int:
    values: list[Any] = index.table[column].to_pylist()
    return sum(bool(value) for value in values)
