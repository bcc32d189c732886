"""The losses between predicted and teacher tokens, per volume. Not here: networks (oct.model).

In float32 or float64, also under autocast. With predictions z and layer-normed teacher tokens h of a mask's hidden
tokens T and visible tokens C:
    normalized_mse   mean_T ‖z/‖z‖ − h/‖h‖‖² = mean_T (2 − 2 cos(z, h))
    l1               mean_T mean_dimensions |z − h|               (V-JEPA, arXiv 2404.08471; V-JEPA 2, arXiv 2506.09985)
    dense            l1 + mean_C λ/√d · mean_dimensions |z − h|   (V-JEPA 2.1, arXiv 2603.14482)
where d is a visible token's distance, in tokens, to the nearest hidden one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from pathray.nn.regularise import at_least_float32

FAR = 1e9  # squared distance before a hidden token is known


def normalized_mse(z: Tensor, h: Tensor) -> Tensor:
    """`[B]`: 2 − 2 cos, mean over tokens; z and h `[B, M, D]`."""
    return (2 - 2 * F.cosine_similarity(at_least_float32(z), at_least_float32(h), dim=-1, eps=1e-8)).mean(dim=1)


def l1(z: Tensor, h: Tensor) -> Tensor:
    """`[B]`: |z − h|, mean over tokens and dimensions; z and h `[B, M, D]`."""
    return (at_least_float32(z) - h).abs().mean(dim=(1, 2))


def dense(z: Tensor, h: Tensor, weights: Tensor) -> Tensor:
    """`[B]`: Σ over tokens of weight · mean over dimensions of |z − h|, for z and h `[B, N, D]`, weights `[B, N]`."""
    return ((at_least_float32(z) - h).abs().mean(dim=2) * weights).sum(dim=1)


def dense_weights(context: Tensor, target: Tensor, grid: Sequence[int], strength: float) -> Tensor:
    """Weights `[B, K + M]` of the K visible tokens `context`, λ/√d each over K, then of the M hidden ones, 1/M each."""
    distance = squared_distance(target, grid).gather(1, context).sqrt()
    visible = strength / distance.sqrt() / context.shape[1]
    hidden = torch.full(target.shape, 1 / target.shape[1], device=visible.device)
    return torch.cat([visible, hidden], dim=1)


def squared_distance(hidden: Tensor, grid: Sequence[int]) -> Tensor:
    """The squared distance, in tokens, of every token of the grid to the nearest of `hidden` `[B, M]`: `[B, N]`, exact.

    Squares add up over axes, so the nearest along one axis after the other is the nearest of all.
    """
    field = torch.full((len(hidden), prod(grid)), FAR, device=hidden.device).scatter(1, hidden, 0.0)
    field = field.view(-1, *grid)
    for axis, n in enumerate(grid, 1):
        at = torch.arange(n, device=hidden.device, dtype=torch.float32)
        apart = (at[:, None] - at).square()
        field = (field.movedim(axis, -1).unsqueeze(-2) + apart).amin(dim=-1).movedim(-1, axis)
    return field.flatten(1)
