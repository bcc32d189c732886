"""Ranks the trials of a search, best first, as a Markdown table and as CSV. Not here: reading trials from disk."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pathray.search.objective import Objective, Point

FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped", "failed", "unfinished"


@dataclass(frozen=True)
class Entry:
    """One trial: its key `values` at its `best` point, and its `last` (newest) point."""

    trial: str
    status: str
    values: Mapping[str, Any] = field(default_factory=dict)
    best: Point | None = None
    last: Point | None = None
    images_seen: int = 0
    error: str = ""


def entry_of(
    trial: str, status: str, runs: Sequence[tuple[Mapping[str, Any], Sequence[Point], int]], objective: Objective,
    error: str = "",
) -> Entry:  # fmt: skip
    """The entry of a trial from its runs (values, history, images seen); several if it took over other weights."""
    bests = [(objective.cost(best[1]), i, best) for i, run in enumerate(runs) if (best := objective.best(run[1]))]
    _, at, best = min(bests, default=(math.inf, len(runs) - 1, None))
    lasts = [point for _, history, _ in runs if history for point in history[-1:]]
    return Entry(
        trial, status, dict(runs[at][0]) if runs else {}, best, lasts[-1] if lasts else None,
        max((seen for *_, seen in runs), default=0), error,
    )  # fmt: skip


def rank(entries: Sequence[Entry], objective: Objective) -> list[Entry]:
    """The entries, best first, then those without a value, then failed ones, whose values do not count."""

    def place(entry: Entry) -> tuple[bool, bool, float, str]:
        cost = objective.cost(entry.best[1]) if entry.best else math.inf
        return entry.status == FAILED, entry.best is None, cost, entry.trial

    return sorted(entries, key=place)


def best_of(entries: Sequence[Entry], objective: Objective) -> Entry | None:
    """The trial that the search recommends; None if no trial has a value yet."""
    first = next(iter(rank(entries, objective)), None)
    return first if first is not None and first.best is not None and first.status != FAILED else None


def markdown(entries: Sequence[Entry], objective: Objective, keys: Sequence[str], title: str = "Leaderboard") -> str:
    better = "lower is better" if objective.mode == "min" else "higher is better"
    counts = {status: sum(entry.status == status for entry in entries) for status in _order(entries)}
    summary = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none yet"
    lines = [f"# {title}", "", f"`{objective.metric}`, {better}. Trials: {summary}.", ""]
    header, *rows = _table(entries, objective, keys)
    lines += [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    failed = [entry for entry in entries if entry.error]
    if failed:
        lines += ["", "## Errors", "", *(f"- `{entry.trial}`: {_one_line(entry.error)}" for entry in failed)]
    return "\n".join(lines) + "\n"


def csv_text(entries: Sequence[Entry], objective: Objective, keys: Sequence[str]) -> str:
    """The same columns in full precision, with the errors."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header, *rows = _table(entries, objective, keys, exact=True)
    writer.writerow([*header, "error"])
    for row, entry in zip(rows, rank(entries, objective), strict=True):
        writer.writerow([*row, _one_line(entry.error)])
    return out.getvalue()


def _table(entries: Sequence[Entry], objective: Objective, keys: Sequence[str], exact: bool = False) -> list[list[str]]:
    def text(value: Any) -> str:
        return short(value) if not exact else "" if value is None else str(value)

    table = [["rank", "trial", "status", f"{objective.metric} best", "at images", "last", "images seen", *keys]]
    for place, entry in enumerate(rank(entries, objective), start=1):
        best, last = entry.best or (None, None), entry.last or (None, None)
        figures = [text(best[1]), text(best[0]), text(last[1]), text(entry.images_seen)]
        table.append([str(place), entry.trial, entry.status, *figures, *(text(entry.values.get(key)) for key in keys)])
    return table


def short(value: Any) -> str:
    """A value in a short readable form.

    >>> short(0.00012345), short(120000), short(None), short([0.996, 1.0])
    ('0.0001235', '120,000', '', '[0.996, 1]')
    """
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short, value))}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _order(entries: Sequence[Entry]) -> list[str]:
    found = [entry.status for entry in entries]
    return [status for status in (FINISHED, STOPPED, FAILED, UNFINISHED) if status in found]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
