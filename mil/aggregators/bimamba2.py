"""BiMamba-2: state-space layers that read the instances in both directions, then their mean.

Mamba-2 is Dao and Gu 2024 (arXiv 2405.21060); both directions summed as in Vision Mamba (Zhu et al. 2024, 2401.09417).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding, attention_extras
from mil.aggregators.registry import register_aggregator
from pathray.nn.mamba2 import Mamba2
from pathray.nn.masked import masked_mean, masked_softmax
from pathray.nn.ssd import CHUNK


class BiMambaLayer(nn.Module):
    """x + dropout(forwards(LN x) + backwards(LN x))."""

    def __init__(self, dim: int, state: int, kernel: int, expand: int, head_dim: int, chunk: int, drop: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(dim), drop
        self.forwards = Mamba2(dim, state, kernel, expand, head_dim, chunk)
        self.backwards = Mamba2(dim, state, kernel, expand, head_dim, chunk)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm(x)
        both = self.forwards(h, mask) + self.backwards(h, mask, reverse=True)
        return x + F.dropout(both, self.dropout, self.training)


@register_aggregator("bimamba2")
class BiMamba2(Aggregator):
    """z = mean_n LN(h_n) after `layers` layers; linear in the number of instances, whose order matters.

    The model has no attention. What is returned as such `[B, 1, N]` is a proxy: z·LN(h_n)/√E and its softmax.
    """

    permutes = False

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        layers: int = 2,
        state: int = 64,
        kernel: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        chunk: int = CHUNK,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.layers = nn.ModuleList(
            BiMambaLayer(embed_dim, state, kernel, expand, head_dim, chunk, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        for layer in self.layers:
            h = self._run(layer, h, mask)
        h = self.norm(h)
        embedding = masked_mean(h, mask)
        if not return_attention:
            return Aggregated(embedding, {})
        scores = torch.bmm(embedding[:, None].to(h.dtype), h.transpose(1, 2)) / self.embed_dim**0.5
        return Aggregated(embedding, attention_extras(scores, masked_softmax(scores, _rows(mask)), True))


def _rows(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None]
