"""What one science knows about training, as the loop sees it. Nothing of devices, Ray or files.

A recipe owns modules and says, per phase, which parameters are trained and what the loss of a micro-batch is. The loop
owns everything else: batches, accumulation, gradient sync, optimizers, cadences, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from pathray.errors import UserError

Micro = dict[str, Any]  # tensors on the device; MIL adds lists of tensors


class Loss(NamedTuple):
    """The loss of one micro-batch as a sum over its units, and what to divide it by.

    The loop minimises Σ sum / Σ weight over the whole global batch, so ragged bags, padding and accumulation tails
    weigh what they should. Both are scalars on the device. `metrics` are detached scalar means over this micro-batch;
    they are averaged with `weight`.
    """

    sum: Tensor
    weight: Tensor
    metrics: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Progress:
    """Where a run stands at step `step` (from 0) of `total_steps`. Schedules are pure functions of it."""

    step: int
    total_steps: int
    global_batch: int

    @property
    def images_seen(self) -> int:
        """Units consumed before this step."""
        return self.step * self.global_batch

    @property
    def total_images(self) -> int:
        return self.total_steps * self.global_batch

    @property
    def fraction(self) -> float:
        """Steps done of all steps, 0 … 1."""
        return self.step / max(1, self.total_steps)


class Recipe(Protocol):
    """One science's model and mathematics.

    `modules` holds everything that a checkpoint must (student, teacher, predictor …); there is no other state: all
    randomness comes from the batch (seeds that travel with it) or from torch's generator, which the loop reseeds.
    `params` gives, per phase, the named parameters that it trains, in a fixed order; names are unique in a phase.
    """

    modules: nn.ModuleDict
    params: dict[str, list[tuple[str, nn.Parameter]]]

    def phases(self, step: int) -> tuple[str, ...]:
        """The phases of this step, in order: each is backward, sync, optimizer step before the next begins."""
        ...

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        """Once per micro-batch, on the device, without gradients: normalise, augment."""
        ...

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        """The loss of a prepared micro-batch, computed under autocast. No host sync (`.item()`) inside."""
        ...

    def after_step(self, progress: Progress) -> None:
        """After all phases of the step `progress.step`: EMA and the like. Scalars that change go in as tensors
        (`pathray.device.scalar`), or XLA compiles every step anew."""
        ...

    def signals(self) -> dict[str, float]:
        """Collapse signals and other slow figures: called on the log cadence only, on every rank."""
        ...


class TrainingStopped(UserError):
    """The run cannot go on: too many bad steps, or too much unreadable data. Every rank raises it at the same step."""
