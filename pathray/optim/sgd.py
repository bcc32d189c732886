"""Stochastic gradient descent with momentum, as `torch.optim.SGD` defines it. Not here: layer-wise rates (lars.py)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pathray.optim.optimizer import Optimizer


class SGD(Optimizer):
    """g ← g + λ p, b ← μ b + g, p ← p − η b (with `nesterov`, p ← p − η (g + μ b)); no λ for norms and biases."""

    moments = ("momentum",)

    def __init__(
        self,
        named_params: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        nesterov: bool = False,
    ) -> None:
        super().__init__(named_params, lr=lr, weight_decay=weight_decay)
        assert 0 <= momentum < 1, momentum
        self.momentum, self.nesterov = momentum, nesterov

    def _update(self, gradient: Tensor | None, ok: Tensor) -> None:
        gradient = self._usable(gradient, ok)
        if self.decayed:
            decay = torch._foreach_mul(self._select_decayed(self.params), ok * self.weight_decay)
            torch._foreach_add_(self._select_decayed(self.split(gradient)), decay)
        buffer = self.flat["momentum"]
        buffer.mul_(1 - ok * (1 - self.momentum)).add_(gradient)
        update = gradient.add_(buffer, alpha=self.momentum) if self.nesterov else buffer
        torch._foreach_sub_(self.params, self.split(update * (ok * self.lr)))
