"""The pre-flight checklist of OCT pretraining: twelve lines, each of which runs whatever the others found.

Not here: the checks (oct.checklist.data_lines, training_lines, mask_lines), environment and devices
(ray_jobs.doctor).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from oct.checklist.data_lines import DATA_CHECKS
from oct.checklist.lines import Line, Seen, run_check
from oct.checklist.mask_lines import EXACT, MARGINALS
from oct.checklist.training_lines import DRAWN, PIPELINE, TRANSFORMS, VIEWS

CHECKS = (*DATA_CHECKS, TRANSFORMS, EXACT, VIEWS, DRAWN, PIPELINE, MARGINALS)


def run_checklist(seen: Seen) -> Iterator[Line]:
    """The twelve lines, each as soon as it is known."""
    for number, check in enumerate(CHECKS, start=1):
        yield run_check(number, check, seen)


def format_line(line: Line, width: int) -> str:
    """A line as text of at most `width` columns, its remedy below; number 0 is not shown."""
    names = max(len(check.name) for check in CHECKS)
    left = f"{line.number or '':>2} {line.status:<8} {line.name:<{names}}  "
    indent = " " * len(left)
    told = textwrap.wrap(line.found, max(30, width - len(left))) or [""]
    out = [left + told[0], *(indent + more for more in told[1:])]
    if line.remedy:
        out += textwrap.wrap(line.remedy, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ")
    return "\n".join(out)


def verdict(lines: Sequence[Line]) -> str:
    """The last line: how many are ok, failed and not run."""
    statuses = [line.status for line in lines]
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "FAILED", "not run"))
