"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Not here: what all optimizers share (optimizer.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from pathray.optim.optimizer import Optimizer

FUSED_ON = ("cpu", "cuda")


class AdamW(Optimizer):
    """p ← (1 − η λ) p − η m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), with m ← β₁ m + (1 − β₁) g and
    v ← β₂ v + (1 − β₂) g². The decay λ is decoupled (algorithm 2), and 0 where `pathray.optim.groups.decays` is
    false."""

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

    def _update(self, gradient: Tensor | None, ok: Tensor) -> None:
        if self.decayed:
            torch._foreach_mul_(self._select_decayed(self.params), 1 - ok * self.lr * self.weight_decay)
        (self._update_fused if fused_runs(self.device) else self._update_unfused)(gradient, ok)

    def _update_fused(self, gradient: Tensor | None, ok: Tensor) -> None:
        """One pass over memory; the kernel changes nothing if `found_inf` is 1."""
        moments = self.views["exp_avg"], self.views["exp_avg_sq"]
        _fused_adamw(
            self.params, self._gradients(gradient), *moments, self.steps, self.lr, self.betas, self.eps, 1 - ok
        )

    def _update_unfused(self, gradient: Tensor | None, ok: Tensor) -> None:
        (b1, b2), m, v = self.betas, self.flat["exp_avg"], self.flat["exp_avg_sq"]
        g = self._usable(gradient, ok)
        m.mul_(1 - ok * (1 - b1)).add_(g, alpha=1 - b1)
        v.mul_(1 - ok * (1 - b2)).addcmul_(g, g, value=1 - b2)
        t = self.steps.clamp(min=1).to(torch.float32)
        update = torch.sqrt(v).div_(_correction(b2, t).sqrt()).add_(self.eps)
        torch.div(m, update, out=update)
        update.mul_(ok * self.lr / _correction(b1, t))
        torch._foreach_sub_(self.params, self.split(update))


@lru_cache(maxsize=16)
def fused_runs(device: torch.device) -> bool:
    """Whether PyTorch's fused kernel exists and works, including skipped steps, tested by running it on two numbers.
    Only tested where the kernel is native, because XLA would succeed by running it on the host."""
    if device.type not in FUSED_ON:
        return False
    p, g, m, v = (torch.full((2,), value, device=device) for value in (1.0, 0.5, 0.0, 0.0))
    lr, one = torch.tensor(0.1, device=device), torch.ones((), device=device)
    try:
        _fused_adamw([p], [g * torch.nan], [m], [v], one, lr, (0.9, 0.99), 1e-8, one)
        untouched = bool(((p == 1) & (m == 0) & (v == 0)).all())
        _fused_adamw([p], [g], [m], [v], one, lr, (0.9, 0.99), 1e-8, one - 1)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return untouched and bool(torch.allclose(p, torch.full_like(p, 0.9)) and torch.allclose(m, g * 0.1))


def _fused_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    steps: Tensor,
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    found_inf: Tensor,
) -> None:
    torch._fused_adamw_(
        params,
        grads,
        m,
        v,
        [],
        [steps.to(torch.float32)] * len(params),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=found_inf,
    )


def _correction(beta: float, t: Tensor) -> Tensor:
    """1 − βᵗ without cancellation, in float32."""
    return torch.ones_like(t) if beta == 0 else -torch.expm1(t * math.log(beta))
