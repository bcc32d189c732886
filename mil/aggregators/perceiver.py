"""Perceiver: a few learned latents that attend to the instances (Jaegle et al. 2021, arXiv 2103.03206)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding, attention_extras
from mil.aggregators.registry import register_aggregator
from pathray.nn.attention import attention
from pathray.nn.blocks import NORM_EPS, Block
from pathray.nn.masked import masked_softmax


class CrossAttention(nn.Module):
    """Latents `[B, M, E]` + dropout(attention of LN latents to LN instances `[B, N, E]`); the M × N matrix is never
    kept."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        assert dim % heads == 0, (dim, heads)
        self.heads, self.dropout = heads, dropout
        self.latent_norm, self.instance_norm = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.query, self.key_value, self.project = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, latents: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        q = self._queries(latents)
        k, v = self.key_value(self.instance_norm(h)).unflatten(2, (2, self.heads, -1)).unbind(2)
        out = self.project(attention(q, k, v, key_mask=mask).flatten(2))
        return latents + F.dropout(out, self.dropout, self.training)

    def weights(self, latents: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        """The attention to instances, mean over the latents, `[B, H, N]`."""
        q = self._queries(latents).transpose(1, 2)
        k = F.linear(self.instance_norm(h), *(t.chunk(2)[0] for t in (self.key_value.weight, self.key_value.bias)))
        scores = q @ k.unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1) / q.shape[-1] ** 0.5
        return masked_softmax(scores, None if mask is None else mask[:, None, None]).mean(dim=2)

    def _queries(self, latents: Tensor) -> Tensor:
        q: Tensor = self.query(self.latent_norm(latents)).unflatten(2, (self.heads, -1))
        return q


class PerceiverLayer(nn.Module):
    """Cross-attention of the latents to the instances, then a transformer block over the latents."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross, self.block = CrossAttention(dim, heads, dropout), Block(dim, heads)

    def forward(self, latents: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.block(self.cross(latents, h, mask))
        return out


@register_aggregator("perceiver")
class Perceiver(Aggregator):
    """z = the mean over M latents of LN(latents) after `layers` layers; linear in the number of instances.

    The attention returned is the last layer's, mean over the latents, per head `[B, heads, N]`; its logits are the
    logarithms of that mean.
    """

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        latents: int = 32,
        layers: int = 1,
        heads: int = 4,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.attention_rows = heads
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.latents = nn.Parameter(0.02 * torch.randn(1, latents, embed_dim))
        self.layers = nn.ModuleList(PerceiverLayer(embed_dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        latents = self.latents.expand(x.shape[0], -1, -1)
        before = latents
        for layer in self.layers:
            before, latents = latents, self._run(layer, latents, h, mask)
        extras = {}
        if return_attention:
            last = cast(PerceiverLayer, self.layers[-1])
            weights = last.cross.weights(before, h, mask)
            extras = attention_extras(weights.log(), weights, True)
        return Aggregated(self.norm(latents).mean(dim=1), extras)
