"""A ViT whose feature is pooled by attention: a learned query looks at all of its tokens, as in CoCa.

CoCa: Yu et al. 2022, arXiv 2205.01917, section 3.2; the image tower of CONCH (Lu et al. 2024) has this form. Not here:
pooling of MIL bags (mil.aggregators).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathray.nn.attention import attention
from pathray.nn.blocks import INIT_STD
from pathray.nn.vit import ViT, ViTConfig

POOL_EPS = 1e-5


class AttentionPool(nn.Module):
    """LN(W_o softmax(q kᵀ / √Dh) v + b_o) of the first query; q = W_q LN(query), k and v are of LN(tokens).

    tokens `[B, N, C]` -> `[B, D]`, D = `dim`.
    """

    def __init__(self, context: int, dim: int, heads: int, queries: int = 1) -> None:
        super().__init__()
        assert dim % heads == 0, (dim, heads)
        self.heads = heads
        self.query = nn.Parameter(torch.empty(queries, dim))
        self.norm_q = nn.LayerNorm(dim, eps=POOL_EPS)
        self.norm_k = nn.LayerNorm(context, eps=POOL_EPS)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(context, dim), nn.Linear(context, dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=POOL_EPS)
        nn.init.trunc_normal_(self.query, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        B, N, _ = tokens.shape
        context, split = self.norm_k(tokens), (B, N, self.heads, -1)
        q = self.q(self.norm_q(self.query[:1])).expand(B, 1, -1).reshape(B, 1, self.heads, -1)
        pooled = attention(q, self.k(context).view(split), self.v(context).view(split))
        out: Tensor = self.norm(self.proj(pooled.reshape(B, -1)))
        return out


class PooledViT(nn.Module):
    """`[B, C, H, W]` -> tokens `[B, P+N, D]` of the ViT; `pool` makes the feature `[B, E]` of them."""

    def __init__(self, vit: ViT, pool: AttentionPool) -> None:
        super().__init__()
        self.vit, self.pool = vit, pool

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> PooledViT:
        """From an artifact's description: `vit`, a ViTConfig's fields, and `pool`, the arguments of the pooling."""
        vit = ViT(ViTConfig(**network["vit"]))
        return cls(vit, AttentionPool(vit.config.dim, **network["pool"]))

    @property
    def num_prefix(self) -> int:
        return self.vit.num_prefix

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.vit(x)
        return out
