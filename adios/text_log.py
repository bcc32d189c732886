"""Reads text logs of the published code as rows of metrics, to draw their curves.

A line counts if it has an iteration, ``[ 10610/300000]`` or ``Iteration 10610:``, and figures,
``student_loss: 8.512300 (8.634100)``: the newest value and, in brackets, the mean since the start, which is left out.
Not here: rows of our own runs (pathray.store.metrics_log).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pathray.errors import UserError
from pathray.store.storage import Storage

STEP = "iteration"
PLACE = re.compile(r"\[\s*(\d+)\s*/\s*\d+\s*\]|\bIteration:?\s+(\d+)\b")
NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
FIGURE = re.compile(rf"\b([A-Za-z]\w*):\s+({NUMBER})(?=\s|$|,|\))")
NOT_FIGURES = frozenset(("eta", "time", "data", "max", "mem", "Iteration"))  # of clocks and memory


def rows_of_text(text: str) -> list[dict[str, Any]]:
    """The rows of one log, in order.

    >>> rows_of_text("x [  20/300] eta: 0:01:02 student_loss: 8.5 (8.6) lr: 5e-05 (0.000049) time: 0.3")
    [{'iteration': 20, 'student_loss': 8.5, 'lr': 5e-05}]
    """
    rows = []
    for line in text.splitlines():
        place = PLACE.search(line)
        if place is None:
            continue
        figures = {name: float(value) for name, value in FIGURE.findall(line) if name not in NOT_FIGURES}
        if figures:
            rows.append({STEP: int(place[1] or place[2]), **figures})
    return rows


def read_logs(paths: Iterable[str]) -> list[dict[str, Any]]:
    """The joined rows of one run's logs, oldest first. Lines of the same iteration are one row; where a resumed run
    repeats iterations, the later figures count. UserError naming a log without rows."""
    out: list[dict[str, Any]] = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        text = Storage.of(folder or ("/" if path.startswith("/") else ".")).read_bytes(name)
        rows = rows_of_text(text.decode(errors="replace"))
        if not rows:
            expected = "lines like [ 10/300] … student_loss: 8.51 (8.63)"
            raise UserError("no figures in this log", file=path, expected=expected)
        for row in rows:
            while out and out[-1][STEP] > row[STEP]:
                out.pop()
            same = out.pop() if out and out[-1][STEP] == row[STEP] else {}
            out.append(same | row)
    return out
