"""Metrics of the steps since the last log row, accumulated on the device and read at the log cadence only.

Per phase: the loss (mean, min, max over the steps' global means) and the gradient norm, without skipped bad steps. From
the recipe: means weighted by `Loss.weight` over micro-batches and ranks. Times are measured on the host: `step_ms`
excludes the time of the ticks' consumer (such as saving), `images_per_s` includes it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathray.device import Device

NO_STEPS = (0.0, 0.0, math.inf, -math.inf, 0.0)  # steps, Σ loss, least, most, Σ norm


class Window:
    """Running sums since the last `read`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.phases: dict[str, Tensor] = {}
        self.recipe: dict[str, Tensor] = {}
        self.steps, self.images, self.wait_s = 0, 0, 0.0
        self.outside_s = 0.0  # spent by the consumer of the ticks
        self.began = time.perf_counter()

    def micro(self, metrics: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add the metrics of one micro-batch of this rank."""
        for name, value in metrics.items():
            w = weight.detach().to(torch.float32).reshape(())
            pair = torch.stack([value.detach().to(torch.float32).reshape(()) * w, w])
            self.recipe[name] = self._before(self.recipe, name, (0.0, 0.0)) + pair

    def phase(self, name: str, loss: Tensor, norm: Tensor, ok: Tensor) -> None:
        """Add one phase of one step: its mean loss over the global batch and the norm of its mean gradient."""
        loss, norm = loss.to(torch.float32), norm.to(torch.float32)
        zero, far = torch.zeros_like(loss), torch.full_like(loss, math.inf)
        new = [torch.where(ok > 0, x, y) for x, y in ((loss, zero), (loss, far), (loss, -far), (norm, zero))]
        steps, total, least, most, norms = self._before(self.phases, name, NO_STEPS).unbind()
        least, most = torch.minimum(least, new[1]), torch.maximum(most, new[2])
        self.phases[name] = torch.stack([steps + ok.to(torch.float32), total + new[0], least, most, norms + new[3]])

    def step(self, images: int, wait_s: float) -> None:
        """Count one step, in which the host waited `wait_s` seconds for data."""
        self.steps, self.images, self.wait_s = self.steps + 1, self.images + images, self.wait_s + wait_s

    def read(self, phases: Sequence[str]) -> dict[str, float]:
        """The metrics as floats (NaN if there was nothing); starts a new window. Waits for the device and all ranks.

        `phases` are all phases of the recipe. With several, ``loss`` is the first phase's, and each phase also has its
        own ``loss/<phase>`` etc.
        """
        assert self.steps
        sums = self._host()
        out: dict[str, float] = {}
        for name in phases:
            if name in self.phases:
                figures = _phase_figures(sums[name])
                suffix = f"/{name}" if len(phases) > 1 else ""
                out |= {f"{key}{suffix}": value for key, value in figures.items()}
                if suffix and "loss" not in out:
                    out |= figures
        out |= self._recipe_means(sums)
        wall = max(time.perf_counter() - self.began, 1e-9)
        out["step_ms"] = 1e3 * (wall - self.outside_s) / self.steps
        out["data_wait_ms"] = 1e3 * self.wait_s / self.steps
        out["images_per_s"] = self.images / wall
        self.reset()
        return out

    def _before(self, sums: dict[str, Tensor], name: str, first: Sequence[float]) -> Tensor:
        """The sums so far. They start as data, so that a window's first step uses the same XLA graph as others."""
        known = sums.get(name)
        return torch.tensor(first).to(self.device.torch_device, non_blocking=True) if known is None else known

    def _host(self) -> dict[str, list[float]]:
        """All sums, copied to the host in one transfer."""
        parts = {**self.phases, **{f"recipe:{name}": pair for name, pair in self.recipe.items()}}
        values = torch.cat(list(parts.values())).tolist() if parts else []
        out, first = {}, 0
        for name, part in parts.items():
            out[name] = values[first : first + part.numel()]
            first += part.numel()
        return out

    def _recipe_means(self, sums: Mapping[str, list[float]]) -> dict[str, float]:
        own = {name: sums[f"recipe:{name}"] for name in self.recipe}
        pairs: dict[str, list[list[float]]] = {}
        for rank in self.device.gather_objects(own) if self.device.reduces else [own]:
            for name, pair in rank.items():
                pairs.setdefault(name, []).append(pair)
        return {name: _ratio(sum(p[0] for p in rows), sum(p[1] for p in rows)) for name, rows in pairs.items()}


def _phase_figures(values: Sequence[float]) -> dict[str, float]:
    steps, total, least, most, norm = values
    if not steps:
        return dict.fromkeys(("loss", "loss_min", "loss_max", "grad_norm"), math.nan)
    return {"loss": total / steps, "loss_min": least, "loss_max": most, "grad_norm": norm / steps}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
