"""The teacher as an exponential moving average of the student. Not here: its momentum schedule
(pathray.optim.schedules)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from pathray.device import scalar
from pathray.optim.optimizer import check_same_tensors

M = TypeVar("M", bound=nn.Module)


class Ema:
    """Stateless: the average is in the teacher's parameters, and the momentum comes from the recipe's schedule."""

    @staticmethod
    def teacher_of(student: M) -> M:
        """A copy of `student` without gradients, in evaluation mode (no dropout, no stochastic depth)."""
        return copy.deepcopy(student).requires_grad_(False).eval()

    @staticmethod
    @torch.no_grad()
    def update(teacher: nn.Module, student: nn.Module, momentum: Tensor | float) -> None:
        """θ_t ← μ θ_t + (1 − μ) θ_s for parameters; buffers are copied. Exact at μ = 0 and μ = 1.

        A scalar tensor `momentum` is used on the device without waiting for the host. UserError if the two models
        differ.
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


def drift(teacher: nn.Module, student: nn.Module) -> float:
    """‖teacher − student‖ / ‖student‖ over all parameters. Waits for the device."""
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    apart = torch.stack([(t - s).detach().float().square().sum() for t, s in pairs]).sum()
    size = torch.stack([s.detach().float().square().sum() for _, s in pairs]).sum()
    return float((apart / size).sqrt())
