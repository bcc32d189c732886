"""Running statistics of batch norms under several ranks and bad steps. Not needed, and idle, without batch norms.

Every rank sees other units, so its running mean and variance drift from the others' and a checkpoint would hold only
rank 0's. After each step they are averaged over ranks; after a bad step they are as before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pathray.device import Device


class RunningStatistics:
    """The running mean and variance of every batch norm below `modules`."""

    def __init__(self, modules: nn.Module, device: Device) -> None:
        self.device = device
        self.layers = [m for m in modules.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        self.before: list[Tensor] = []

    def begin(self) -> None:
        self.before = [s.clone() for s in self._floats()]

    @torch.no_grad()
    def end(self, ok: Tensor) -> None:
        """Agree on the statistics, or go back to those before the step where `ok` is 0."""
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
