"""Tiny recipes and a stream for them: what the loop's tests train. Not a science."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pathray.data.order import rng
from pathray.device import scalar
from pathray.optim.ema import Ema
from pathray.optim.schedules import Schedule, constant
from pathray.train.recipe import Loss, Micro, Progress
from pathray.train.settings import LoopSettings, PhaseOptim

WIDTH = 6


def unit(position: int, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """The features and the target of one unit: a noisy linear map, by position alone."""
    g = rng(5, "toy", position)
    x = g.normal(size=width).astype(np.float32)
    return x, np.float32(x[: width // 2].sum() + 0.1 * g.normal())


def units(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[N, WIDTH]` and targets `[N]` of the units from `first` up to `last`."""
    x, y = zip(*(unit(p) for p in range(first, last)), strict=True)
    return np.stack(x), np.array(y)


def stream(
    settings: LoopSettings, rank: int = 0, world: int = 1, *, corrupt: Callable[[int], bool] = lambda position: False
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """`batches` of toy units for one rank."""
    share, micro = settings.global_batch // world, settings.micro_batch

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step in range(start, settings.total_images, settings.global_batch):
            for first in range(step + rank * share, step + (rank + 1) * share, micro):
                positions = np.arange(first, first + micro)
                x, y = zip(*(unit(int(p)) for p in positions), strict=True)
                count = sum(corrupt(int(p)) for p in positions)
                yield {"position": positions, "x": np.stack(x), "y": np.array(y), "corrupt": count, "name": "toy"}

    return batches


class TwoPhases:
    """A student with dropout and batch norm, a teacher by EMA, and an adversary trained in a second phase on the
    student that has just moved: the shape of ADIOS. Ragged weights: unit p weighs 1 + p mod 3."""

    def __init__(self, *, adversary_every: int = 2, dropout: float = 0.3, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            student = nn.Sequential(
                nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1)
            ).to(dtype)
            adversary = nn.Linear(WIDTH, WIDTH).to(dtype)
        self.modules = nn.ModuleDict({"student": student, "teacher": Ema.teacher_of(student), "adversary": adversary})
        named = {name: list(self.modules[name].named_parameters()) for name in ("student", "adversary")}
        self.params: dict[str, list[tuple[str, nn.Parameter]]] = named
        self.adversary_every = adversary_every

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student", "adversary") if step % self.adversary_every == 0 else ("student",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        noise = 0.05 * torch.randn_like(micro["x"])
        return {**micro, "x": micro["x"] + noise}

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        x = micro["x"] * torch.sigmoid(self.modules["adversary"](micro["x"]))
        error = (self.modules["student"](x).squeeze(1) - micro["y"]) ** 2
        weight = (1 + micro["position"] % 3).to(error.dtype)
        total = (weight * error).sum()
        if phase == "adversary":
            return Loss(-total, weight.sum())
        with torch.no_grad():
            drift = (self.modules["teacher"](x) - self.modules["student"](x)).abs().mean()
        return Loss(total, weight.sum(), {"drift": drift, "x_mean": x.detach().mean()})

    def after_step(self, progress: Progress) -> None:
        momentum = scalar(0.9 + 0.1 * progress.fraction, self.params["student"][0][1].device)
        Ema.update(self.modules["teacher"], self.modules["student"], momentum)

    def signals(self) -> dict[str, float]:
        return {"teacher_norm": float(sum(p.norm() for p in self.modules["teacher"].parameters()))}


class Regression:
    """One linear layer on the toy units; `poison(position)` makes units whose loss is NaN."""

    def __init__(self, poison: Callable[[Tensor], Tensor] | None = None, dtype: torch.dtype = torch.float32) -> None:
        layer = nn.Linear(WIDTH, 1, bias=True).to(dtype)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        self.modules = nn.ModuleDict({"layer": layer})
        self.params = {"model": list(layer.named_parameters())}
        self.poison = poison

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        return micro

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        weight = next(self.modules["layer"].parameters())
        error = (self.modules["layer"](micro["x"].to(weight.dtype)).squeeze(1) - micro["y"]) ** 2
        if self.poison is not None:
            error = torch.where(self.poison(micro["position"]), torch.nan, 1.0) * error
        return Loss(error.sum(), error.new_full((), len(error)), {"error_max": error.detach().max()})

    def after_step(self, progress: Progress) -> None:
        self.last = progress

    def signals(self) -> dict[str, float]:
        return {}


def settings(
    *, optim: dict[str, PhaseOptim] | None = None, phases: tuple[str, ...] = ("model",), **changes: Any
) -> LoopSettings:
    """Six units a step, micro-batches of one third, ten steps, AdamW with a schedule."""
    lr = Schedule("warmup_cosine", first=1e-3, peak=2e-2, last=1e-4, warmup=2)
    default = {phase: PhaseOptim(lr=lr, weight_decay=constant(0.05), clip=1.0) for phase in phases}
    values: dict[str, Any] = {"seed": 3, "global_batch": 6, "micro_batch": 2, "total_images": 60, "poll_every_steps": 1}
    return LoopSettings(optim=optim or default, **(values | changes))
