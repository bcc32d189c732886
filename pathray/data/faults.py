"""Unreadable units: their rows in the quarantine report, and the error if no replacement can be read.

Not here: how a unit is read and replaced (pathray.data.units).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pathray.errors import UserError


@dataclass(frozen=True)
class Fault:
    """One unreadable unit, as it goes into the quarantine report."""

    position: int
    attempt: int
    row: int
    source: int
    reason: str
    path: str
    detail: str
    benign: bool


class StreamError(UserError):
    """The stream cannot continue; `faults` are those of its last batch, for the report."""

    faults: tuple[Fault, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_error, (self.message, self.where, self.faults)


def _rebuild_error(message: str, where: dict[str, object], faults: tuple[Fault, ...]) -> StreamError:
    error = StreamError(message, **where)
    error.faults = faults
    return error


def no_replacement(position: int, faults: Sequence[Fault]) -> StreamError:
    """The error for a position whose unit and replacements all failed, as listed in `faults`."""
    last = faults[-1]
    return StreamError(
        f"no readable unit found for position {position} in {len(faults)} attempts",
        file=last.path,
        row=last.row,
        found=f"{last.reason}: {last.detail}",
        expected="a plan whose units can mostly be read",
    )
