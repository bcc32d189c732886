"""The settings of the loop: budget, batch, cadences (all resolved to images) and an optimizer per phase.

Not here: converting epochs and fractions to images (pathray.train.budget), schedules (pathray.optim.schedules).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from pathray.data.share import check_geometry
from pathray.device import PRECISIONS
from pathray.errors import UserError
from pathray.optim.adamw import AdamW
from pathray.optim.lars import LARS
from pathray.optim.layer_rates import LayerRates
from pathray.optim.schedules import Schedule, constant
from pathray.optim.sgd import SGD

OPTIMIZERS = ("adamw", "sgd")
GRAD_SYNC = ("flat", "overlap")


@dataclass(frozen=True)
class PhaseOptim:
    """The optimizer of one phase. `clip` bounds the global norm of the phase's mean gradient.

    `lars` adds LARS's layer-wise rates to either kind (`lars_trust` is its η, `lars_clip` "ratio" or "larc"). `rates`
    are factors of the learning rate by prefix of a parameter's name (pathray.optim.layer_rates).
    """

    kind: str = "adamw"
    lr: Schedule = field(default_factory=lambda: constant(1e-3))
    weight_decay: Schedule = field(default_factory=lambda: constant(0.0))
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    clip: float | None = None
    lars: bool = False
    lars_trust: float = 0.02
    lars_clip: str = "ratio"
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise UserError("unknown optimizer", key="optimizer", found=self.kind, expected=" or ".join(OPTIMIZERS))
        if self.lars_clip not in ("ratio", "larc"):
            raise UserError(
                "unknown kind of LARS clipping", key="lars_clip", found=self.lars_clip, expected="ratio or larc"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError("clip must be > 0", key="clip", found=self.clip, expected="> 0, or none")

    def build(self, named_params: Iterable[tuple[str, nn.Parameter]]) -> Any:
        """The optimizer over these parameters, in this order."""
        inner: AdamW | SGD
        if self.kind == "adamw":
            inner = AdamW(named_params, betas=self.betas, eps=self.eps)
        else:
            inner = SGD(named_params, momentum=self.momentum, nesterov=self.nesterov)
        clip: Literal["larc", "ratio"] = "larc" if self.lars_clip == "larc" else "ratio"
        whole = LARS(inner, trust=self.lars_trust, clip=clip) if self.lars else inner
        return LayerRates(whole, self.rates) if self.rates else whole


@dataclass(frozen=True)
class LoopSettings:
    """One run's settings. Identity: seed, global_batch, total_images, optim. Placement: all others.

    total_images: the budget, whole steps (pathray.train.budget rounds it up).
    log_every, save_every, snapshot_every: cadences in images, 0 for never (the end always logs).
    poll_every_steps: how often all ranks check the stop flag and the counters of bad steps and unreadable units.
    max_bad_steps: this many steps in a row with NaN or Inf end the run. max_corrupt_fraction: limit of unreadable units
    among those seen so far, checked from `judge_corrupt_from` units on, and among every `judge_recent` units, if
    exceeded by more than chance.
    deterministic: bit-reproducible CUDA kernels, at some cost in speed.
    whole_batch: what in the loss needs the whole global batch at once, if anything: then no micro-batch is smaller.
    step_timeout_s: a step that is busy for longer hangs and ends the process (pathray.train.step_watch); 0: never.
    """

    seed: int
    global_batch: int
    micro_batch: int
    total_images: int
    optim: dict[str, PhaseOptim]
    precision: str = "fp32"
    log_every: int = 0
    save_every: int = 0
    snapshot_every: int = 0
    poll_every_steps: int = 10
    max_bad_steps: int = 10
    max_corrupt_fraction: float = 0.05
    judge_corrupt_from: int = 256
    judge_recent: int = 4096
    grad_sync: str = "flat"
    deterministic: bool = False
    whole_batch: str = ""
    step_timeout_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.total_images > 0 and self.total_images % self.global_batch == 0, "the budget must be whole steps"
        assert self.poll_every_steps >= 1 and self.max_bad_steps >= 1
        for key, found, allowed in (
            ("precision", self.precision, tuple(PRECISIONS)),
            ("grad_sync", self.grad_sync, GRAD_SYNC),
        ):
            if found not in allowed:
                raise UserError(f"unknown {key}", key=key, found=found, expected=" or ".join(allowed))

    @property
    def total_steps(self) -> int:
        return self.total_images // self.global_batch

    def micros_per_step(self, world: int) -> int:
        """The micro-batches of one rank per step. UserError unless W·micro divides G."""
        check_geometry(self.global_batch, world, self.micro_batch)
        return self.global_batch // (world * self.micro_batch)
