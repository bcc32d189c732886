"""Decides whether a run may continue: counts steps with NaN or Inf, unreadable units and stop requests.

Counters are on the device; the host reads them at the poll cadence. They are sums over all ranks, so every rank makes
the same decision at the same step.

Unreadable units are checked over the whole run and over a recent window, because an outage after a week is only a small
part of the whole run.
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
CHANCE = 4.0  # standard deviations by which a recent share must exceed the limit, since it is checked many times


class Mark(NamedTuple):
    """The units (each unit of a group counts) seen, and replaced as unreadable, up to some step."""

    seen: int = 0
    corrupt: int = 0


@dataclass(frozen=True)
class Report:
    """The counters as read by the host. `bad` counts skipped steps, `last_bad` is the newest of them (or -1), `corrupt`
    counts replaced units of the whole run, `saves` counts checkpoint requests since this process started, `units`
    counts units seen if positions hold groups."""

    bad: int
    longest: int
    last_bad: int
    corrupt: int
    stop: bool
    saves: int = 0
    units: int | None = None


class Health:
    """Counters over the whole run, on the device: `[bad, current streak, longest streak, last bad, corrupt]`.

    Unreadable units are checked from two marks on: `since` (the start of the run, or where it was restarted after a
    repair of the data) and `recent`. Counters and marks are saved in the checkpoint.
    """

    def __init__(self, device: Device) -> None:
        self.counts = torch.tensor([0, 0, 0, -1, 0], dtype=torch.int64).to(device.torch_device)
        self.asked = torch.zeros(2, device=device.torch_device)  # requests to stop, to save
        self.known = 0  # bad steps reported so far
        self.saves = 0  # save requests handled so far
        self.since = self.recent = Mark()
        self.units: Tensor | None = None  # units seen, `[1]`; None if a position is one unit

    def update(self, step: Tensor, ok: Tensor, corrupt: Tensor, asked: Tensor, units: Tensor | None = None) -> None:
        """Count one step: `step` is its number, `ok` 1 or 0. Sums over ranks are `corrupt` (replaced units), `asked`
        `[2]` (requests to stop and to save) and `units` `[1]` (`[0]` unless positions hold groups)."""
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
        """Read the counters, waiting for the device."""
        units = [] if self.units is None else [self.units]
        counts = torch.cat([self.counts, self.asked.to(torch.int64), *units]).tolist()
        bad, _, longest, last, corrupt, stop, saves, *seen = counts
        return Report(bad, longest, last, corrupt, stop > 0, saves, *seen)

    def take_save_request(self, report: Report) -> bool:
        """Whether a checkpoint was requested since the last call."""
        fresh, self.saves = report.saves > self.saves, report.saves
        return fresh

    def bad_step_metrics(self, report: Report) -> dict[str, float]:
        """Metrics of bad steps since the last call, logged at once; empty if there are none."""
        fresh, self.known = report.bad - self.known, report.bad
        if not fresh:
            return {}
        log.warning("%d steps with NaN or Inf were skipped; the last was step %d", fresh, report.last_bad)
        return {
            "bad_steps": float(fresh),
            "bad_steps_total": float(report.bad),
            "last_bad_step": float(report.last_bad),
        }

    def check(self, report: Report, settings: LoopSettings, *, step: int, seen: int) -> None:
        """TrainingStopped if too many steps in a row were bad, or too many units unreadable: of all units since the
        mark, or, by more than chance, of the last `judge_recent`. `seen` counts positions."""
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

    def reset_marks(self, seen: int) -> None:
        """Check unreadable units from now on as if the run began after `seen` positions."""
        self.since = self.recent = Mark(seen if self.units is None else int(self.units), int(self.counts[4]))

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def marks(self) -> dict[str, list[int]]:
        """The marks as plain data for the checkpoint's meta, with the number of units if positions hold groups."""
        units = {} if self.units is None else {"units": self.units.tolist()}
        return {"since": list(self.since), "recent": list(self.recent), **units}

    def load(self, tensors: Mapping[str, Tensor], marks: Mapping[str, Any]) -> None:
        """Restore `tensors` and `marks`; without marks (older checkpoints) units count from the start of the run."""
        self.counts = tensors["counts"].to(self.counts.device, copy=True)
        self.counts[2] = self.counts[1]  # a past streak that did not end the run no longer counts
        self.known = int(self.counts[0])
        self.since, self.recent = (Mark(*marks.get(name, (0, 0))) for name in ("since", "recent"))
        self.units = torch.tensor(marks["units"]).to(self.counts.device) if "units" in marks else None


def _too_many_bad(report: Report, settings: LoopSettings) -> TrainingStopped:
    return TrainingStopped(
        f"the loss or a gradient was NaN or Inf in {report.longest} steps in a row, the last of them step "
        f"{report.last_bad}; these steps did not change the weights. Lower the learning rate, clip gradients, or "
        "inspect the units of these steps",
        key="max_bad_steps",
        found=report.longest,
        expected=f"fewer than {settings.max_bad_steps}",
    )


def _too_many_corrupt(what: str, share: float, step: int, bound: float) -> TrainingStopped:
    return TrainingStopped(
        f"too many units cannot be read: {what} up to step {step} were replaced; see the quarantine report",
        key="max_corrupt_fraction",
        found=round(share, 4),
        expected=f"at most {bound}",
    )
