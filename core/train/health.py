"""Whether a run may go on: steps with NaN or Inf, unreadable units, a request to stop. Counted on the device.

The counters grow without the host; it reads them on the poll cadence, and since they are sums over all ranks, every
rank draws the same conclusion at the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.device import Device
from core.train.recipe import TrainingStopped
from core.train.settings import LoopSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The counters as the host read them. `bad` counts steps that changed nothing; `last_bad` is the newest (-1)."""

    bad: int
    longest: int
    last_bad: int
    corrupt: int
    stop: bool


class Health:
    """Counters over the whole run (they are in the checkpoint): `[bad, in a row, longest row, last bad, corrupt]`."""

    def __init__(self, device: Device) -> None:
        self.counts = torch.tensor([0, 0, 0, -1, 0], dtype=torch.int64).to(device.torch_device)
        self.stop = torch.zeros((), device=device.torch_device)
        self.known = 0  # bad steps that have been reported

    def update(self, step: Tensor, ok: Tensor, corrupt: Tensor, stop: Tensor) -> None:
        """After a step: `step` its number, `ok` 1 or 0, `corrupt` units replaced and `stop` summed over ranks."""
        total, row, longest, last, broken = self.counts.unbind()
        bad = 1 - ok.to(torch.int64)
        row = (row + bad) * bad
        last = torch.where(bad > 0, step.to(torch.int64), last)
        corrupted = broken + corrupt.round().to(torch.int64)
        self.counts = torch.stack([total + bad, row, torch.maximum(longest, row), last, corrupted])
        self.stop = self.stop + stop.to(self.stop.dtype)

    def read(self) -> Report:
        """Wait for the counters."""
        bad, _, longest, last, corrupt, stop = torch.cat([self.counts, self.stop.reshape(1).to(torch.int64)]).tolist()
        return Report(bad, longest, last, corrupt, stop > 0)

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

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.counts = tensors["counts"].to(self.counts.device, copy=True)
        self.counts[2] = self.counts[1]  # a longest row that was survived is history
        self.known = int(self.counts[0])


def check(report: Report, settings: LoopSettings, *, step: int, seen: int) -> None:
    """TrainingStopped when too many steps in a row were bad, or too many of the `seen` units unreadable."""
    if report.longest >= settings.max_bad_steps:
        raise TrainingStopped(
            f"the loss or a gradient was NaN or Inf in {report.longest} steps in a row, the last of them step "
            f"{report.last_bad}; the weights are as before them. Lower the learning rate, clip gradients, or look at "
            "the units of these steps",
            key="max_bad_steps",
            found=report.longest,
            expected=f"fewer than {settings.max_bad_steps}",
        )
    bound = settings.max_corrupt_fraction
    judged = seen >= min(settings.judge_corrupt_from, settings.total_images) or bound == 0
    if report.corrupt > bound * seen and judged:
        raise TrainingStopped(
            f"too much of the data cannot be read: {report.corrupt} of {seen} units up to step {step} were replaced; "
            "the quarantine report names them",
            key="max_corrupt_fraction",
            found=round(report.corrupt / seen, 4),
            expected=f"at most {bound}",
        )
