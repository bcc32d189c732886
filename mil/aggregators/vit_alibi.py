"""A vision transformer over the instances of a slide with 2-D ALiBi, as the slide encoder of TITAN (Ding et al. 2024,
arXiv 2411.19666). Not here: TITAN's pretraining and its weights."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding, attention_extras
from mil.aggregators.registry import register_aggregator
from pathray.nn.alibi import alibi_attention, alibi_slopes
from pathray.nn.blocks import INIT_STD, NORM_EPS, Mlp
from pathray.nn.masked import masked_softmax


class AlibiBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), with distances in the attention."""

    slopes: Tensor

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        assert dim % heads == 0, (dim, heads)
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def forward(self, x: Tensor, places: Tensor, key_mask: Tensor | None) -> Tensor:
        q, k, v = self._heads(x)
        out = alibi_attention(q, k, v, places, self.slopes, key_mask).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.project(out), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)

    def class_scores(self, x: Tensor) -> Tensor:
        """The class token's scores to the instances `[B, H, N]`; it has no distance to them."""
        q, k, _ = self._heads(x)
        scores: Tensor = (q[:, :, :1] @ k[:, :, 1:].transpose(2, 3)).squeeze(2) / q.shape[-1] ** 0.5
        return scores

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = (
            self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return parts


@register_aggregator("vit_alibi")
class AlibiViT(Aggregator):
    """z = LN(class token) after `layers` blocks. Distances between upper left corners count in sides of a tile, as in
    TITAN, times `1 / unit`. Moving a whole slide changes nothing.

    The attention returned is the class token's of the last block, softmax over the instances, `[B, heads, N]`.
    """

    uses_coords = True

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        layers: int = 6,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        unit: float = 1.0,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.attention_rows, self.unit = heads, unit
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.class_token = nn.Parameter(INIT_STD * torch.randn(1, 1, embed_dim))
        self.blocks = nn.ModuleList(AlibiBlock(embed_dim, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        assert coords is not None
        h = self._run(self.embed, x)
        tokens = torch.cat([self.class_token.expand(h.shape[0], -1, -1).to(h.dtype), h], dim=1)
        places = F.pad(coords.float() / self.unit, (0, 0, 1, 0))
        key_mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        before = tokens
        for block in self.blocks:
            before, tokens = tokens, self._run(block, tokens, places, key_mask)
        extras = {}
        if return_attention:
            scores = cast(AlibiBlock, self.blocks[-1]).class_scores(before)
            extras = attention_extras(scores, masked_softmax(scores, None if mask is None else mask[:, None]), True)
        return Aggregated(self.norm(tokens[:, 0]), extras)
