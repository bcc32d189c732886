"""Transformer blocks: pre-norm attention and MLP with LayerScale and stochastic depth, for batches and packs.

Not here: how attention is computed (pathray.nn.attention) and what the tokens are (pathray.nn.vit).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.attention import attention, segment_ids
from pathray.nn.positions import rotate

NORM_EPS = 1e-6
INIT_STD = 0.02

MlpKind = Literal["gelu", "swiglu"]


class Mlp(nn.Module):
    """x -> W₂ GELU(W₁ x + b₁) + b₂, `[…, dim]` -> `[…, dim]`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwiGLU(nn.Module):
    """x -> W₃ (SiLU(W₁ x) ⊙ W₂ x) (Shazeer 2020, arXiv 2002.05202), `[…, dim]` -> `[…, dim]`.

    `hidden` is the width of a plain MLP; two thirds of it, rounded up to a multiple of 8, keep the parameter count.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        width = swiglu_width(hidden)
        self.fc1 = nn.Linear(dim, 2 * width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(gate) * value)
        return out


def swiglu_width(hidden: int) -> int:
    """The width of a gated MLP that has the parameters of a plain one of width `hidden`."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class LayerScale(nn.Module):
    """x -> γ ⊙ x with a learned γ `[dim]` (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def layer_scale_init(depth: int) -> float:
    """CaiT's initial value of γ for a depth (arXiv 2103.17239, section 2.2)."""
    return 0.1 if depth < 18 else 1e-5 if depth < 24 else 1e-6


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, the residual of a whole sample is dropped
    with probability `rate`, and scaled by 1/(1 − rate) otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        assert 0 <= rate < 1, rate
        self.rate = rate

    def forward(self, residual: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """`[B, N, D]` with one draw per B; with `lengths`, `[1, Σ lengths, D]` with one draw per segment."""
        if not self.training or self.rate == 0:
            return residual
        samples = residual.shape[0] if lengths is None else len(lengths)
        draw = torch.rand(samples, device=residual.device)
        scale = (draw >= self.rate).to(residual.dtype) / (1 - self.rate)
        if lengths is None:
            return residual * scale.view(-1, *[1] * (residual.dim() - 1))
        return residual * scale[segment_ids(tuple(lengths), residual.device)][:, None]

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Attention(nn.Module):
    """Multi-head self-attention `[B, N, D]` -> `[B, N, D]`, optionally with normalised q and k and rotary positions."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        assert dim % heads == 0, (dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm: nn.Module = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        *,
        angles: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        heads = attention(q, k, v, lengths=lengths, key_mask=key_mask)
        out: Tensor = self.proj(heads.reshape(B, N, D))
        return out


class Block(nn.Module):
    """x + drop(γ₁ Attention(LN x)), then x + drop(γ₂ MLP(LN x)); `[B, N, D]` -> `[B, N, D]`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        mlp: MlpKind = "gelu",
        qkv_bias: bool = True,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias, qk_norm=qk_norm)
        self.scale1: nn.Module = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp: nn.Module = (Mlp if mlp == "gelu" else SwiGLU)(dim, int(dim * mlp_ratio))
        self.scale2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        residual = self.attn(self.norm1(x), angles=angles, lengths=lengths, key_mask=key_mask)
        x = x + self.drop_path(self.scale1(residual), lengths)
        out: Tensor = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))), lengths)
        return out


def init_transformer(module: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Initialise linear weights from a normal with std .02 truncated at ±2, and biases to 0. Then divide the last
    projections of attention and MLP in the l-th block (from 1) by √(2l), as in I-JEPA (arXiv 2301.08243, published
    code) and BEiT (arXiv 2106.08254, section 2.4), so that a deep model's residual stream starts at the scale of a
    shallow one.
    """
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=INIT_STD)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    for number, block in enumerate(blocks, 1):
        assert isinstance(block, Block)
        for last in (block.attn.proj.weight, block.mlp.get_parameter("fc2.weight")):
            last.data.div_((2.0 * number) ** 0.5)
