"""What became of each unit of a job: a CSV with one line each, and the verdict on them. Not a place for figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UnreadableUnit, UserError
from core.storage import write_atomic

Row = Mapping[str, Any]
SHOWN = 10


def describe(error: BaseException) -> str:
    """One line for a report."""
    known = isinstance(error, UserError | UnreadableUnit)
    return " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())


def write_report(path: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A CSV of `columns`, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def check_success(
    rows: Sequence[Row], name: str, what: str, min_success_fraction: float, report: object, error: str = "error"
) -> None:
    """UserError that shows the rows of status "failed" when fewer than `min_success_fraction` of all are another.

    `name` and `error` are the columns that say which unit it is and what is wrong, `what` is a word for the units.
    """
    failed = [row for row in rows if row["status"] == "failed"]
    if len(rows) - len(failed) >= min_success_fraction * len(rows):
        return
    shown = [f"{row[name] or '(no id)'}: {row[error]}" for row in failed[:SHOWN]]
    more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    raise UserError(
        f"{len(failed)} of {len(rows)} {what} failed:\n  " + "\n  ".join(shown + more) + "\n",
        file=report,
        key="min_success_fraction",
        found=round((len(rows) - len(failed)) / len(rows), 4),
        expected=f"at least {min_success_fraction}",
    )
