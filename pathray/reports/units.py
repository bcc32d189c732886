"""What became of each unit of a job: a CSV with one line each, and the verdict on them. Not a place for figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.store.storage import Storage, write_atomic

Row = Mapping[str, Any]
SHOWN = 10
OWN = ("status", "error")  # of the newest start


def describe(error: BaseException) -> str:
    """One line for a report."""
    known = isinstance(error, UserError | UnreadableUnit)
    return " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())


def write_report(path: str, columns: Sequence[str], rows: Iterable[Row], *, key: str = "") -> None:
    """A CSV of `columns`, whole or not at all.

    key: the column that names a unit. With it, a unit that is skipped since an earlier start finished it keeps the
    facts (all columns but status and error) that the earlier report at `path` has of it.
    """
    if key:
        rows = with_earlier_facts(path, rows, key)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def with_earlier_facts(path: str, rows: Iterable[Row], key: str) -> list[Row]:
    """The rows; where one is "skipped", what it lacks is taken from the report at `path`, if that is readable."""
    known = {row.get(key): row for row in _earlier(path) if row.get("status") not in (None, "failed")}
    out: list[Row] = []
    for row in rows:
        before = known.get(str(row.get(key))) if row.get("status") == "skipped" else None
        facts = {name: value for name, value in (before or {}).items() if name not in OWN and not row.get(name)}
        out.append({**row, **facts})
    return out


def _earlier(path: str) -> list[dict[str, str]]:
    folder, _, name = path.rpartition("/")
    try:
        text = Storage.of(folder or ".").read_bytes(name).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=""))
    except (MissingFile, ValueError, csv.Error):
        return []  # none, or a damaged one: it is written anew
    return [row for row in rows if all(isinstance(value, str) for value in row.values())]


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
        expected=f"at least {min_success_fraction}; mend these, or allow them with a smaller min_success_fraction",
    )
