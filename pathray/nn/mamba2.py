"""A Mamba-2 layer (Dao and Gu 2024, arXiv 2405.21060, section 7), with one group of B and C and parameters as in the
published code. Not here: its scan (pathray.nn.ssd), norms and residuals around it, generation step by step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.regularise import at_least_float32
from pathray.nn.ssd import CHUNK, ssd_scan


class Mamba2(nn.Module):
    """`[B, L, E]` → `[B, L, E]`; step t sees the steps up to t, or from t on with `reverse`.

    z, xBC, Δ = W_in u;  xBC = SiLU(conv(xBC));  Δ = softplus(Δ + b);  y = scan(x, Δ, A, B, C) + D x
    out = W_out RMSNorm(y ⊙ SiLU(z))
    """

    def __init__(
        self, dim: int, state: int = 64, kernel: int = 4, expand: int = 2, head_dim: int = 64, chunk: int = CHUNK
    ) -> None:
        super().__init__()
        self.inner, self.state, self.chunk = expand * dim, state, chunk
        head_dim = min(head_dim, self.inner)
        assert self.inner % head_dim == 0, (self.inner, head_dim)
        self.heads, mixed = self.inner // head_dim, self.inner + 2 * state
        self.in_proj = nn.Linear(dim, self.inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, groups=mixed)
        step = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, u: Tensor, mask: Tensor | None = None, reverse: bool = False) -> Tensor:
        """`mask` `[B, L]`, True for real steps, which come first: the others are skipped in both directions."""
        if mask is not None:
            u = u.masked_fill(~mask[..., None], 0.0)
        if reverse:
            u, mask = u.flip(1), None if mask is None else mask.flip(1)
        z, mixed, dt = self.in_proj(u).split([self.inner, self.inner + 2 * self.state, self.heads], dim=2)
        x, b, c = F.silu(self._convolve(mixed)).split([self.inner, self.state, self.state], dim=2)
        dt = F.softplus(at_least_float32(dt) + self.dt_bias)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], 0.0)
        x = x.unflatten(2, (self.heads, -1))
        y = ssd_scan(x, dt, -at_least_float32(self.A_log).exp(), b, c, self.chunk)
        y = (y + x * self.D[:, None]).flatten(2)
        out: Tensor = self.out_proj(self.norm(y, z))
        return out.flip(1) if reverse else out

    def _convolve(self, x: Tensor) -> Tensor:
        """The causal convolution per channel, `[B, L, C]` → `[B, L, C]`."""
        kernel = self.conv1d.weight.shape[2]
        padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
        out: Tensor = self.conv1d(padded)
        return out.transpose(1, 2)


class GatedRMSNorm(nn.Module):
    """y ⊙ SiLU(z), divided by its root mean square, times a weight; `[…, D]`."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = at_least_float32(y) * F.silu(at_least_float32(z))
        out: Tensor = F.rms_norm(gated, gated.shape[-1:], self.weight, self.eps)
        return out
