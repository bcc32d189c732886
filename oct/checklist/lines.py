"""A line of the pre-flight checklist: its result, what it saw, and what to do; and how a check becomes a line.

A check is a function of `Seen` that returns what it saw. It never ends the list: what it raises is its line's result.
Not here: the checks (oct.checklist.data_lines, oct.checklist.training_lines), the list (oct.checklist.run).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathray.errors import UnreadableUnit, UserError, explain

if TYPE_CHECKING:
    from oct.config import RunConfig
    from oct.pictures.samples import Origin
    from oct.volume import Sampled, VolumeHeader

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"


class Fault(Exception):
    """A check found something wrong. `remedy`: what to do, if not what the line always advises."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class NotPossible(Exception):
    """A check has nothing to work on, such as the result of a line that failed."""


@dataclass
class Seen:
    """What the checks work on, and what earlier lines found. Empty: they failed.

    output_dir: where pictures go. volumes: files that were read on the config's grid.
    """

    config: RunConfig
    output_dir: str
    samples: int = 4
    seed: int = 0
    full_model: bool = False
    origins: list[Origin] = field(default_factory=list)
    volumes: list[tuple[Origin, VolumeHeader, Sampled]] = field(default_factory=list)

    def need_origins(self) -> list[Origin]:
        """NotPossible if the manifest was not read."""
        if not self.origins:
            raise NotPossible("needs line 3")
        return self.origins

    def need_volumes(self) -> list[tuple[Origin, VolumeHeader, Sampled]]:
        """NotPossible if no volume was read."""
        if not self.volumes:
            raise NotPossible("needs line 5")
        return self.volumes


@dataclass(frozen=True)
class Check:
    """A check with its name and what to do if it fails."""

    name: str
    look: Callable[[Seen], str]
    remedy: str


@dataclass(frozen=True)
class Line:
    """The result of a check."""

    number: int
    name: str
    status: str
    found: str
    remedy: str = ""

    @property
    def has_failed(self) -> bool:
        return self.status == FAILED


def run_check(number: int, check: Check, seen: Seen) -> Line:
    """The line of a check. Whatever it raises is a result; a mistake of ours is named with its place."""
    try:
        return Line(number, check.name, OK, check.look(seen))
    except NotPossible as e:
        return Line(number, check.name, NOT_RUN, str(e))
    except Fault as e:
        return Line(number, check.name, FAILED, e.found, e.remedy or check.remedy)
    except (UserError, UnreadableUnit) as e:
        return Line(number, check.name, FAILED, explain(e, UnreadableUnit), check.remedy)
    except Exception as e:  # a check that cannot be run is a finding, too
        return Line(number, check.name, FAILED, _told(e), f"{check.remedy}; if that does not help, report this line")


def _told(error: Any) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
