"""LARS (You et al. 2017, arXiv 1708.03888): layer-wise rates around another optimizer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pathray.device import scalar
from pathray.optim.around import AroundOptimizer
from pathray.optim.optimizer import Optimizer


class LARS(AroundOptimizer[Optimizer]):
    """g ← f (g + λ p) for every weight, then one step of `inner` without weight decay; the interface of an optimizer.

    r = η ‖p‖ / (‖g‖ + λ ‖p‖ + 1e-8) per weight with η the `trust`; ``clip="ratio"``: f = min(r, 10);
    ``clip="larc"``: f = min(r / lr, 1), so that the rate of a layer never exceeds the schedule's. Biases, norms and
    tokens (`pathray.optim.groups.decays`) are unchanged; f = 1 if the norm of a weight or of its gradient is 0.
    """

    def __init__(self, inner: Optimizer, *, trust: float = 0.02, clip: Literal["ratio", "larc"] = "ratio") -> None:
        super().__init__(inner)
        self.trust, self.clip = trust, clip
        self.weight_decay = inner.weight_decay.clone()
        inner.weight_decay.zero_()

    def set(self, *, lr: float | Tensor | None = None, weight_decay: float | Tensor | None = None) -> None:
        self.inner.set(lr=lr)
        if weight_decay is not None:
            self.weight_decay.copy_(scalar(weight_decay, self.weight_decay.device), non_blocking=True)

    @torch.no_grad()
    def step(self, ok: Tensor | None = None, gradient: Tensor | None = None) -> None:
        """One update; see `Optimizer.step`."""
        flat = torch.cat([g.reshape(-1) for g in self.inner._gradients(gradient)])
        params, grads = (
            [tensors[i] for i in self.inner.decayed] for tensors in (self.inner.params, self.inner.split(flat))
        )
        if params:
            p_norm, g_norm = (torch.stack(torch._foreach_norm(t)) for t in (params, grads))
            ratio = self.trust * p_norm / (g_norm + self.weight_decay * p_norm + 1e-8)
            factor = ratio.clamp(max=10) if self.clip == "ratio" else (ratio / self.inner.lr).clamp(max=1)
            factor = torch.where((p_norm > 0) & (g_norm > 0), factor, 1.0)
            torch._foreach_add_(grads, torch._foreach_mul(params, self.weight_decay))
            torch._foreach_mul_(grads, list(factor.unbind()))
        self.inner.step(ok, flat)
