"""A recipe of a few numbers for XLA: one transformer block with dropout and stochastic depth, units that can be poison.

Its graphs compile in a second or so, where those of a science take ten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pathray.data.order import rng
from pathray.device import scalar
from pathray.nn.blocks import Block
from pathray.optim.ema import Ema
from pathray.optim.schedules import Schedule, constant
from pathray.train.recipe import Loss, Micro, Progress
from pathray.train.settings import LoopSettings, PhaseOptim

G, MICRO, STEPS, TOKENS, DIM = 8, 8, 8, 3, 8


def settings(**changes: Any) -> LoopSettings:
    """Eight steps of AdamW whose rates change with every step and touch 0 and 1, looked at after each of them."""
    optim = PhaseOptim(
        lr=Schedule("warmup_cosine", first=0.0, peak=1e-2, last=0.0, warmup=2),
        weight_decay=Schedule("cosine", 1.0, last=0.0),
        clip=1.0,
    )
    values = {"seed": 3, "global_batch": G, "micro_batch": MICRO, "total_images": G * STEPS, "optim": {"model": optim}}
    return LoopSettings(**(values | {"log_every": G, "poll_every_steps": 1} | changes))


def stream(run: LoopSettings) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Units by position alone."""

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for first in range(start, run.total_images, run.micro_batch):
            positions = np.arange(first, first + run.micro_batch)
            x = np.stack([rng(7, "tiny", int(p)).standard_normal((TOKENS, DIM)) for p in positions])
            yield {"position": positions, "x": x.astype(np.float32), "corrupt": 0}

    return batches


class Tiny:
    """Predicts each unit's mean. `poison`: positions whose loss is NaN. Metric ``kept``: the share that dropout keeps.

    No parameter has a gradient that is zero but for rounding (a bias of keys, say): AdamW makes whole steps of those.
    """

    def __init__(self, *, dropout: float = 0.0, drop_path: float = 0.0, poison: Collection[int] = ()) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = nn.Linear(DIM, 1)
            block = Block(DIM, 2, qkv_bias=False, drop_path=drop_path)
        student = nn.ModuleDict({"block": block, "head": head, "dropout": nn.Dropout(dropout)})
        self.modules = nn.ModuleDict({"student": student, "teacher": Ema.teacher_of(student)})
        self.params = {"model": list(student.named_parameters())}
        self.poison = sorted(poison)

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        return micro

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        student = self.modules["student"]
        tokens = student["block"](student["dropout"](micro["x"]))
        kept = (student["dropout"](torch.ones_like(micro["x"])) > 0).to(torch.float32)
        error = (student["head"](tokens.mean(1)).squeeze(1) - micro["x"].mean((1, 2))) ** 2
        for position in self.poison:
            error = torch.where(micro["position"] == position, torch.nan, 1.0) * error
        return Loss(error.sum(), count(error), {"kept": kept.mean()})

    def after_step(self, progress: Progress) -> None:
        """Momentum from 0 to 1, both included."""
        fraction = progress.step / (progress.total_steps - 1)
        device = self.params["model"][0][1].device
        Ema.update(self.modules["teacher"], self.modules["student"], scalar(fraction, device))

    def signals(self) -> dict[str, float]:
        return {}


class TwoPhases:
    """The shape of ADIOS: a student with batch norm, and an adversary that is trained against it every other step."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            student = nn.Sequential(nn.Linear(DIM, 16, bias=False), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 1))
            self.modules = nn.ModuleDict({"student": student, "adversary": nn.Linear(DIM, DIM)})
        self.params = {name: list(module.named_parameters()) for name, module in self.modules.items()}

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student", "adversary") if step % 2 == 0 else ("student",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        return micro

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        x = micro["x"].mean(1)
        error = (self.modules["student"](x * torch.sigmoid(self.modules["adversary"](x))).squeeze(1) - x.mean(1)) ** 2
        weight = (1 + micro["position"] % 3).to(error.dtype)
        total = (weight * error).sum()
        return Loss(total if phase == "student" else -total, weight.sum())

    def after_step(self, progress: Progress) -> None:
        return None

    def signals(self) -> dict[str, float]:
        return {}


def two_phases(**changes: Any) -> LoopSettings:
    """Settings for TwoPhases: SGD with LARS for one, AdamW for the other."""
    lr = Schedule("cosine", 1e-2, last=0.0)
    student = PhaseOptim(kind="sgd", lr=lr, weight_decay=constant(1e-3), lars=True)
    return settings(optim={"student": student, "adversary": PhaseOptim(lr=lr)}, **changes)


def count(units: Tensor) -> Tensor:
    """How many units there are, as a scalar beside them."""
    return torch.full((), float(len(units)), device=units.device)
