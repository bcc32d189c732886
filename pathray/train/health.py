"""Whether a run may go on: steps with NaN or Inf, unreadable units, a request to stop. Counted on the device.

The counters grow without the host; it reads them on the poll cadence, and since they are sums over all ranks, every
rank draws the same conclusion at the same step.

Unreadable units are judged over the whole run and over the units since a mark that moves along, because an outage after
a week is a small part of the week.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathray.device import Device
from pathray.train.recipe import TrainingStopped
from pathray.train.settings import LoopSettings

log = logging.getLogger(__name__)
CHANCE = 4.0  # standard deviations by which a recent share must exceed the bound: one is judged very many times


class Mark(NamedTuple):
    """How many units (of groups: each) had been seen, and how many of them replaced, at some step."""

    seen: int = 0
    corrupt: int = 0


@dataclass(frozen=True)
class Report:
    """The counters as the host read them. `bad` counts steps that changed nothing; `last_bad` is the newest (-1);
    `corrupt` counts units of the whole run, `saves` how often a checkpoint was asked for since this process began;
    `units` are those seen, where positions hold groups of them."""

    bad: int
    longest: int
    last_bad: int
    corrupt: int
    stop: bool
    saves: int = 0
    units: int | None = None


class Health:
    """Counters over the whole run: `[bad, in a row, longest row, last bad, corrupt]`, on the device.

    The host keeps two marks: unreadable units are judged from `since` on (the start of the run, or where somebody who
    has seen to the data started it again) and from `recent` on. Counters and marks are in the checkpoint.
    """

    def __init__(self, device: Device) -> None:
        self.counts = torch.tensor([0, 0, 0, -1, 0], dtype=torch.int64).to(device.torch_device)
        self.asked = torch.zeros(2, device=device.torch_device)  # to stop, to save
        self.known = 0  # bad steps that have been reported
        self.saves = 0  # wishes to save that have been heard
        self.since = self.recent = Mark()
        self.units: Tensor | None = None  # seen, `[1]`; None where a position is one unit

    def update(self, step: Tensor, ok: Tensor, corrupt: Tensor, asked: Tensor, units: Tensor | None = None) -> None:
        """After a step: `step` its number, `ok` 1 or 0; over ranks the sums of `corrupt`, units replaced, of `asked`
        `[2]`, wishes to stop and to save, and, where positions hold groups, of `units` `[1]`, else `[0]`."""
        total, row, longest, last, broken = self.counts.unbind()
        bad = 1 - ok.to(torch.int64)
        row = (row + bad) * bad
        last = torch.where(bad > 0, step.to(torch.int64), last)
        corrupted = broken + corrupt.round().to(torch.int64)
        self.counts = torch.stack([total + bad, row, torch.maximum(longest, row), last, corrupted])
        self.asked = self.asked + asked.to(self.asked.dtype)
        if units is not None and units.numel():
            more = units.round().to(torch.int64)
            self.units = more if self.units is None else self.units + more

    def read(self) -> Report:
        """Wait for the counters."""
        units = [] if self.units is None else [self.units]
        counts = torch.cat([self.counts, self.asked.to(torch.int64), *units]).tolist()
        bad, _, longest, last, corrupt, stop, saves, *seen = counts
        return Report(bad, longest, last, corrupt, stop > 0, saves, *seen)

    def save_asked(self, report: Report) -> bool:
        """Whether a checkpoint was asked for that nobody has heard of yet."""
        fresh, self.saves = report.saves > self.saves, report.saves
        return fresh

    def news(self, report: Report) -> dict[str, float]:
        """Metrics of bad steps that have not been reported yet; empty without any. Logged whatever the log cadence."""
        fresh, self.known = report.bad - self.known, report.bad
        if not fresh:
            return {}
        log.warning("%d steps with NaN or Inf changed nothing; the last was step %d", fresh, report.last_bad)
        return {
            "bad_steps": float(fresh),
            "bad_steps_total": float(report.bad),
            "last_bad_step": float(report.last_bad),
        }

    def check(self, report: Report, settings: LoopSettings, *, step: int, seen: int) -> None:
        """TrainingStopped when too many steps in a row were bad, or too many units unreadable of those seen since the
        run began, or of the last `judge_recent`: there by more than chance. `seen` counts positions."""
        if report.longest >= settings.max_bad_steps:
            raise _too_many_bad(report, settings)
        bound = settings.max_corrupt_fraction
        now = Mark(seen if report.units is None else report.units, report.corrupt)
        units, corrupt = now.seen - self.since.seen, now.corrupt - self.since.corrupt
        enough = units >= settings.judge_corrupt_from or seen >= settings.total_images
        if corrupt > bound * units and (enough or bound == 0):
            raise _too_many_corrupt(f"{corrupt} of {units} units", corrupt / units, step, bound)
        units, corrupt = now.seen - self.recent.seen, now.corrupt - self.recent.corrupt
        if units < settings.judge_recent:
            return
        self.recent = now
        if corrupt > bound * units + CHANCE * math.sqrt(bound * units):
            raise _too_many_corrupt(f"{corrupt} of the last {units} units", corrupt / units, step, bound)

    def judge_anew(self, seen: int) -> None:
        """From here on unreadable units are judged as if the run began after `seen` positions."""
        self.since = self.recent = Mark(seen if self.units is None else int(self.units), int(self.counts[4]))

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def marks(self) -> dict[str, list[int]]:
        """The marks as plain data, for the checkpoint's meta; with the units of groups, which come with the data only
        and so are no tensor that every state has."""
        units = {} if self.units is None else {"units": self.units.tolist()}
        return {"since": list(self.since), "recent": list(self.recent), **units}

    def load(self, tensors: Mapping[str, Tensor], marks: Mapping[str, Any]) -> None:
        """What `tensors` and `marks` gave; no marks (an older checkpoint): judged since the start of the run."""
        self.counts = tensors["counts"].to(self.counts.device, copy=True)
        self.counts[2] = self.counts[1]  # a longest row that was survived is history
        self.known = int(self.counts[0])
        self.since, self.recent = (Mark(*marks.get(name, (0, 0))) for name in ("since", "recent"))
        self.units = torch.tensor(marks["units"]).to(self.counts.device) if "units" in marks else None


def _too_many_bad(report: Report, settings: LoopSettings) -> TrainingStopped:
    return TrainingStopped(
        f"the loss or a gradient was NaN or Inf in {report.longest} steps in a row, the last of them step "
        f"{report.last_bad}; the weights are as before them. Lower the learning rate, clip gradients, or look at "
        "the units of these steps",
        key="max_bad_steps",
        found=report.longest,
        expected=f"fewer than {settings.max_bad_steps}",
    )


def _too_many_corrupt(what: str, share: float, step: int, bound: float) -> TrainingStopped:
    return TrainingStopped(
        f"too much of the data cannot be read: {what} up to step {step} were replaced; "
        "the quarantine report names them",
        key="max_corrupt_fraction",
        found=round(share, 4),
        expected=f"at most {bound}",
    )
