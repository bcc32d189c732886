"""Multi-head ABMIL: several independent gated attentions (Ilse et al. 2018) whose sums are joined by one projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import GatedAttention, InstanceEmbedding, attend, attention_extras, glorot
from mil.aggregators.registry import register_aggregator


@register_aggregator("multihead_abmil")
class MultiheadABMIL(Aggregator):
    """z = W_o [z_1; …; z_H] + b_o, with z_k = Σ_n softmax_n(a_k) h_n and an attention network of its own per head k."""

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        heads: int = 4,
        gated: bool = True,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.attention_rows = heads
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.heads = nn.ModuleList(
            GatedAttention(embed_dim, attention_dim, gated=gated, dropout=dropout) for _ in range(heads)
        )
        self.project = glorot(nn.Linear(heads * embed_dim, embed_dim))

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        scores = torch.cat([self._run(head, h) for head in self.heads], dim=1)
        pooled, weights = attend(scores, h, mask)
        return Aggregated(self.project(pooled.flatten(1)), attention_extras(scores, weights, return_attention))
