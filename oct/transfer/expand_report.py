"""What an expansion says to its user: the report's columns, the closing line, the section of summary.md.

Not here: the verdict on failures (pathray.reports.units).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from oct.transfer.expand import FAILED, KEPT, SKIPPED, WRITTEN
from oct.transfer.ledger import Row
from pathray.reports.summary import Summary
from pathray.urls import public

COLUMNS = ("archive", "member", "path", "status", "error", "bytes", "crc32")


def report_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows as the report shows them: the CRC in hexadecimal, archives without secrets."""
    return [row | {"archive": public(row["archive"]), "crc32": f"{row['crc32']:08x}"} for row in rows]


def closing_line(archives: int, rows: Sequence[Row], validated: bool = False) -> str:
    """Counts that add up: `12 members of 2 archives = 9 written + 1 kept + 1 skipped + 1 failed; 8.1 MB`."""
    counts = Counter(row["status"] for row in rows if row["member"])
    names = {WRITTEN: "written", KEPT: "right" if validated else "kept", SKIPPED: "skipped", FAILED: "failed"}
    shown = [f"{counts[status]:,} {name}" for status, name in names.items() if not (validated and status == WRITTEN)]
    unread = sum(not row["member"] for row in rows)
    more = f"; {unread:,} archives could not be read" if unread else ""
    size = sum(row["bytes"] for row in rows if row["status"] in (WRITTEN, KEPT))
    total = sum(counts.values())
    return f"{total:,} members of {archives:,} archives = {' + '.join(shown)}; {format_bytes(size)}{more}"


def summary_of(rows: Sequence[Row], source: str, archives: int, report: str, validated: bool) -> Summary:
    """The section of an expansion, or of its validation."""

    def units(status: str) -> list[tuple[str, str]]:
        found = [row for row in rows if row["status"] == status]
        return [(f"{row['archive'].rpartition('/')[2]}!{row['member']}", row["error"]) for row in found]

    members = [row for row in rows if row["member"]]
    facts: dict[str, object] = {"archives from": public(source), "archives": archives, "members": len(members)}
    for status in (WRITTEN, KEPT, SKIPPED, FAILED):
        facts[f"members {status}"] = sum(row["status"] == status for row in members)
    facts["bytes"] = sum(row["bytes"] for row in rows if row["status"] in (WRITTEN, KEPT))
    title = "Validation of expanded archives" if validated else "Expanded archives"
    return Summary(
        title, facts, failed=units(FAILED), skipped=units(SKIPPED), files={"report with a row per member": report}
    )


def format_bytes(size: float) -> str:
    """A size as people say it.

    >>> format_bytes(8_123_000)
    '8.1 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
