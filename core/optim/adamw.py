"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Not here: what every optimizer shares (optimizer.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from core.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """p ← (1 − η λ) p − η m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), with m ← β₁ m + (1 − β₁) g and
    v ← β₂ v + (1 − β₂) g². The decay λ is decoupled (algorithm 2), and 0 where `core.optim.groups.decays` is false."""

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        named_params: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float = 0.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(named_params, lr=lr, weight_decay=weight_decay)
        assert all(0 <= b < 1 for b in betas), betas
        self.betas, self.eps = betas, eps

    def _update(self, gradient: Tensor, ok: Tensor) -> None:
        (b1, b2), m, v = self.betas, self.flat["exp_avg"], self.flat["exp_avg_sq"]
        m.mul_(1 - ok * (1 - b1)).add_(gradient, alpha=1 - b1)
        v.mul_(1 - ok * (1 - b2)).addcmul_(gradient, gradient, value=1 - b2)
        t = self.steps.clamp(min=1).to(torch.float32)
        update = torch.sqrt(v).div_(_correction(b2, t).sqrt()).add_(self.eps)
        torch.div(m, update, out=update)
        update.mul_(ok * self.lr / _correction(b1, t))
        if self.decayed:
            torch._foreach_mul_(self._decayed(self.params), 1 - ok * self.lr * self.weight_decay)
        torch._foreach_sub_(self.params, self.split(update))


def _correction(beta: float, t: Tensor) -> Tensor:
    """1 − βᵗ without cancellation, in float32."""
    return torch.ones_like(t) if beta == 0 else -torch.expm1(t * math.log(beta))
