"""The teacher as a moving average of the student. Not here: how its momentum rises (pathray.optim.schedules)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from pathray.device import scalar
from pathray.optim.optimizer import check_same_tensors

M = TypeVar("M", bound=nn.Module)


class Ema:
    """Holds nothing: the average lives in the teacher's own parameters, and the momentum in the recipe's progress."""

    @staticmethod
    def teacher_of(student: M) -> M:
        """A copy of `student` without gradients, in evaluation mode (no dropout, no stochastic depth)."""
        return copy.deepcopy(student).requires_grad_(False).eval()

    @staticmethod
    @torch.no_grad()
    def update(teacher: nn.Module, student: nn.Module, momentum: Tensor | float) -> None:
        """θ_t ← μ θ_t + (1 − μ) θ_s for parameters; buffers are copied. Exact at μ = 0 and μ = 1.

        A tensor `momentum` (a scalar, anywhere) is used on the device without a wait for the host. UserError when the
        two are not the same model.
        """
        own, other = dict(teacher.named_parameters()), dict(student.named_parameters())
        check_same_tensors(own, other, "the student")
        if own:
            targets: list[Tensor] = list(own.values())
            sources: list[Tensor] = [other[name] for name in own]
            mu = scalar(momentum, targets[0].device)
            torch._foreach_lerp_(targets, sources, [1 - mu] * len(targets))
        buffers = dict(student.named_buffers())
        check_same_tensors(dict(teacher.named_buffers()), buffers, "the student")
        for name, buffer in teacher.named_buffers():
            buffer.copy_(buffers[name])
