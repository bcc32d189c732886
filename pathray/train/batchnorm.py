"""Keeps batch norms' running statistics equal over ranks and unchanged by bad steps. Idle without batch norms.

Each rank sees different units, so running means and variances drift apart, and a checkpoint would contain only rank
0's. They are averaged over ranks after each step, and restored after a bad step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pathray.device import Device


class RunningStatistics:
    """The running means and variances of all batch norms in `modules`."""

    def __init__(self, modules: nn.Module, device: Device) -> None:
        self.device = device
        self.layers = [m for m in modules.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        self.before: list[Tensor] = []

    def begin(self) -> None:
        self.before = [s.clone() for s in self._floats()]

    @torch.no_grad()
    def end(self, ok: Tensor) -> None:
        """Average the statistics over ranks, or restore those from before the step if `ok` is 0."""
        now = self._floats()
        if not now:
            return
        flat = torch.cat([s.reshape(-1) for s in now])
        if self.device.reduces:
            self.device.all_reduce_sum_(flat)
            flat = flat / self.device.world_size
        flat = torch.where(ok > 0, flat, torch.cat([s.reshape(-1) for s in self.before]))
        for s, part in zip(now, torch.split(flat, [s.numel() for s in now]), strict=True):
            s.copy_(part.view_as(s))

    def _floats(self) -> list[Tensor]:
        found = [s for m in self.layers for s in (m.running_mean, m.running_var)]
        return [s for s in found if s is not None]
