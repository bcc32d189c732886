"""Simulates another scanner: gain per colour, gamma, sharpness; batched and on the device. No state, no randomness.

Random numbers come with each unit, so a unit looks the same on any device and in any batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pathray.nn.stain import constant


def simulate_scanner(x: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change gain per colour by 2^(±σ/5), gamma by 2^(±σ/2) and sharpness by ±σ of the finest detail.

    x [N, 3, H, W] in 0…1, draws [N, 5] uniforms.
    """
    u = (2 * draws - 1)[:, :, None, None] * strength
    x = x + u[:, 4:5] * (x - blur(x, 1))
    x = x.clamp(1 / 255, 1) ** _exp2(u[:, 3:4] / 2)
    return (x * _exp2(u[:, :3] / 5)).clamp(0, 1)


def _exp2(x: Tensor) -> Tensor:
    """2^x through exp, because XLA computes `torch.exp2` on the host."""
    return torch.exp(x * math.log(2))


def blur(x: Tensor, step: int) -> Tensor:
    """Separable binomial blur (1 4 6 4 1)/16 with `step` pixels between taps (at most what fits), mirrored borders."""
    step = min(step, (min(x.shape[-2:]) - 1) // 2)
    kernel = constant((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), x.device)
    channels = x.shape[1]
    padded = F.pad(x, (2 * step,) * 4, mode="reflect")
    down = F.conv2d(padded, kernel.view(1, 1, 5, 1).repeat(channels, 1, 1, 1), dilation=step, groups=channels)
    return F.conv2d(down, kernel.view(1, 1, 1, 5).repeat(channels, 1, 1, 1), dilation=step, groups=channels)
