"""A learning rate per layer around another optimizer, such as layer-wise decay when fine-tuning (arXiv 2106.08254).

Not here: which layer has which factor (the sciences), schedules (pathray.optim.schedules).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathray.optim.around import AroundOptimizer
from pathray.optim.lars import LARS
from pathray.optim.optimizer import Optimizer


class LayerRates(AroundOptimizer[Optimizer | LARS]):
    """p ← p + f (p′ − p), where p′ is what `inner` makes of p and f the parameter's factor: the interface of an
    optimizer.

    Equal to `inner` with the learning rate f · lr, since its step and its decoupled weight decay are linear in the
    rate (AdamW, SGD with its decay). `rates`: (prefix of a name, factor), the first that fits counts; others have 1.
    """

    def __init__(self, inner: Optimizer | LARS, rates: Sequence[tuple[str, float]]) -> None:
        super().__init__(inner)
        of = [next((f for prefix, f in rates if name.startswith(prefix)), 1.0) for name in inner.names]
        base = inner.inner if isinstance(inner, LARS) else inner
        self.scaled = [p for p, f in zip(base.params, of, strict=True) if f != 1.0]
        self.factors = [f for f in of if f != 1.0]

    def set(self, *, lr: float | Tensor | None = None, weight_decay: float | Tensor | None = None) -> None:
        self.inner.set(lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, ok: Tensor | None = None, gradient: Tensor | None = None) -> None:
        """One update; see `Optimizer.step`."""
        before = [p.clone() for p in self.scaled]
        self.inner.step(ok, gradient)
        if before:
            torch._foreach_sub_(self.scaled, before)
            torch._foreach_mul_(self.scaled, self.factors)
            torch._foreach_add_(self.scaled, before)
