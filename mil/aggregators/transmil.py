"""TransMIL: correlated multiple instance learning by a transformer (Shao et al. 2021, arXiv 2106.00908)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding, attention_extras
from mil.aggregators.ppeg import PPEG
from mil.aggregators.registry import register_aggregator
from pathray.nn.masked import masked_softmax
from pathray.nn.nystrom import FirstToken, NystromAttention


class TransLayer(nn.Module):
    """x + Nyström attention(LN x)."""

    def __init__(self, dim: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = NystromAttention(dim, heads, landmarks, dropout=dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.attention(_zero_beyond(self.norm(x), lengths), lengths)
        return out

    def first(self, x: Tensor, lengths: Tensor | None, scores: bool) -> FirstToken:
        out, logits = self.attention.first(_zero_beyond(self.norm(x), lengths), lengths, scores)
        return FirstToken(x[:, :1] + out, logits)


@register_aggregator("transmil")
class TransMIL(Aggregator):
    """Squaring of the sequence, class token, attention, positions, attention (algorithm 2): z = LN(class token).

    n instances are completed to S² = ⌈√n⌉² by the first ones. Memory is linear in n: of the last layer only the class
    token's row is computed. The attention returned is that row before Nyström's approximation, softmax over the
    instances of q_cls·k/√Dh per head `[B, heads, N]`, which sums to 1 as the approximation does not.
    """

    permutes = False

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        heads: int = 8,
        layers: int = 2,
        landmarks: int | None = None,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.attention_rows = heads
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.class_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.layers = nn.ModuleList(
            TransLayer(embed_dim, heads, landmarks or embed_dim // 2, dropout) for _ in range(layers)
        )
        self.position = PPEG(embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        sides = None if mask is None else mask.sum(dim=1).to(torch.float32).sqrt().ceil().to(torch.int64).clamp(min=1)
        tokens = torch.cat([self.class_token.expand(h.shape[0], -1, -1).to(h.dtype), _squared(h, mask, sides)], dim=1)
        lengths = None if sides is None else sides * sides + 1
        *before, last = (cast(TransLayer, layer) for layer in self.layers)
        for layer in before:
            tokens = self._run(layer, tokens, lengths)
            tokens = torch.cat([tokens[:, :1], self._run(self._positioned, tokens[:, 1:], sides)], dim=1)
        out, scores = self._run(last.first, tokens, lengths, return_attention)
        extras = {}
        if scores is not None:
            scores = scores[:, :, 1 : 1 + x.shape[1]]
            weights = masked_softmax(scores, None if mask is None else mask[:, None])
            extras = attention_extras(scores, weights, True)
        return Aggregated(self.norm(out).squeeze(1), extras)

    def _positioned(self, x: Tensor, sides: Tensor | None) -> Tensor:
        out: Tensor = self.position(x) if sides is None else self.position.masked(x, sides)
        return out


def _squared(h: Tensor, mask: Tensor | None, sides: Tensor | None) -> Tensor:
    """`[B, n, E]` → `[B, ⌈√n⌉², E]`, completed by the first instances. With a mask, whose number n is data, `[B, L, E]`
    with L ≥ ⌈√n⌉² a linear function of N, and 0 behind the square."""
    N = h.shape[1]
    if mask is None or sides is None:
        side = math.isqrt(N - 1) + 1
        return torch.cat([h, h[:, : side * side - N]], dim=1)
    L = N + N // 16 + 34  # ⌈√n⌉² ≤ n + 2√n + 1 ≤ n + n/16 + 17
    count, token = mask.sum(dim=1, keepdim=True), torch.arange(L, device=h.device)
    source = torch.where(token < count, token, token - count).clamp(0, N - 1)
    rows = h.gather(1, source[..., None].expand(-1, -1, h.shape[2]))
    return rows.masked_fill((token >= (sides * sides)[:, None])[..., None], 0.0)


def _zero_beyond(x: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return x
    return x.masked_fill((torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[..., None], 0.0)
