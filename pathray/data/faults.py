"""Units that could not be read: what goes into the quarantine report, and the error when no unit can take its place.

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
    """The stream cannot go on; `faults` are those of the batch at which it ended, for the report."""

    faults: tuple[Fault, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.message, self.where, self.faults)


def _rebuilt(message: str, where: dict[str, object], faults: tuple[Fault, ...]) -> StreamError:
    error = StreamError(message, **where)
    error.faults = faults
    return error


def no_replacement(position: int, faults: Sequence[Fault]) -> StreamError:
    """The error of a position whose unit and replacements all failed: `faults` says how."""
    last = faults[-1]
    return StreamError(
        f"no readable unit found for position {position} in {len(faults)} attempts",
        file=last.path,
        row=last.row,
        found=f"{last.reason}: {last.detail}",
        expected="a plan whose units can mostly be read",
    )
