"""The protocol of a recipe: what a science defines about its training. Independent of devices, Ray and files.

A recipe owns modules and defines, per phase, the trained parameters and the loss of a micro-batch. The loop does
everything else: batches, accumulation, gradient sync, optimizers, cadences, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from pathray.errors import UserError

Micro = dict[str, Any]  # tensors on the device; MIL adds lists of tensors


class Loss(NamedTuple):
    """The loss of one micro-batch as a sum over its units, with the weight to divide it by.

    The loop minimises Σ sum / Σ weight over the global batch, so ragged bags, padding and incomplete accumulation are
    weighted correctly. Both are scalars on the device. `metrics` are detached scalar means over this micro-batch,
    averaged with `weight`.
    """

    sum: Tensor
    weight: Tensor
    metrics: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Progress:
    """The progress of a run: step `step` (from 0) of `total_steps`. Schedules are pure functions of it."""

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
        """The share of steps done, 0 … 1."""
        return self.step / max(1, self.total_steps)


class Recipe(Protocol):
    """One science's model and mathematics.

    `modules` holds the whole state for a checkpoint (student, teacher, predictor …). All randomness comes from seeds in
    the batch or from torch's generator, which the loop reseeds. `params` gives the named parameters trained in each
    phase, in a fixed order, with names unique within a phase.
    """

    modules: nn.ModuleDict
    params: dict[str, list[tuple[str, nn.Parameter]]]

    def phases(self, step: int) -> tuple[str, ...]:
        """The phases of this step, in order. Each does backward, sync and optimizer step before the next begins."""
        ...

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        """Normalise and augment a micro-batch once, on the device, without gradients."""
        ...

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        """The loss of a prepared micro-batch, computed under autocast. It must not sync with the host (`.item()`)."""
        ...

    def after_step(self, progress: Progress) -> None:
        """Called after all phases of step `progress.step`, for EMA updates and similar. Changing scalars must be
        tensors (`pathray.device.scalar`), or XLA recompiles every step."""
        ...

    def signals(self) -> dict[str, float]:
        """Collapse signals and other costly figures; called at the log cadence only, on every rank."""
        ...


class TrainingStopped(UserError):
    """The run cannot continue: too many bad steps or unreadable units. Every rank raises it at the same step."""
