"""ABMIL: attention-based deep multiple instance learning (Ilse, Tomczak and Welling 2018, arXiv 1802.04712)."""

from __future__ import annotations

from torch import Tensor

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import GatedAttention, InstanceEmbedding, attend, attention_extras
from mil.aggregators.registry import register_aggregator


@register_aggregator("abmil")
class ABMIL(Aggregator):
    """z = Σ_n softmax_n(a) h_n with h_n = ReLU(W x_n + b), equations 8 and 9. One attention row."""

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        gated: bool = True,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.attention = GatedAttention(embed_dim, attention_dim, gated=gated, dropout=dropout)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        scores = self._run(self.attention, h)
        pooled, weights = attend(scores, h, mask)
        return Aggregated(pooled.squeeze(1), attention_extras(scores, weights, return_attention))
