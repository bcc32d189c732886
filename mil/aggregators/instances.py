"""What most aggregators begin with: the embedding of instances, gated attention over them, a weighted sum.

Not here: a model; padding (mil.aggregators.base).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.masked import masked_softmax


class InstanceEmbedding(nn.Module):
    """x → ReLU(W x + b), `layers` times, with dropout between them: `[B, N, D]` → `[B, N, E]`."""

    def __init__(self, in_dim: int, embed_dim: int, layers: int = 1, dropout: float = 0.25) -> None:
        super().__init__()
        widths = [in_dim] + [embed_dim] * layers
        self.layers = nn.ModuleList(glorot(nn.Linear(a, b)) for a, b in zip(widths, widths[1:], strict=False))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i:
                x = F.dropout(x, self.dropout, self.training)
            x = F.relu(layer(x))
        return x


class GatedAttention(nn.Module):
    """Attention scores of instances (Ilse et al. 2018, arXiv 1802.04712, equation 9), `[B, N, E]` → `[B, heads, N]`:

        a_n = wᵀ (tanh(V h_n) ⊙ sigmoid(U h_n)); without gate, wᵀ tanh(V h_n)

    V and U are one matrix product; dropout is on both factors. The softmax over n comes later (`attend`).
    """

    def __init__(
        self, embed_dim: int, attention_dim: int, heads: int = 1, *, gated: bool = True, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.gated, self.dropout = gated, dropout
        self.hidden = glorot(nn.Linear(embed_dim, attention_dim * (2 if gated else 1)))
        self.score = glorot(nn.Linear(attention_dim, heads))

    def forward(self, h: Tensor) -> Tensor:
        hidden = self.hidden(h)
        if self.gated:
            v, u = hidden.chunk(2, dim=-1)
            hidden = self._drop(v.tanh()) * self._drop(u.sigmoid())
        else:
            hidden = self._drop(hidden.tanh())
        scores: Tensor = self.score(hidden)
        return scores.transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def attend(scores: Tensor, h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Σ_n softmax(a)_n h_n for scores `[B, H, N]` and h `[B, N, E]`: (`[B, H, E]`, the weights `[B, H, N]` float32)."""
    weights = masked_softmax(scores, None if mask is None else mask[:, None])
    return torch.bmm(weights.to(h.dtype), h), weights


def attention_extras(scores: Tensor, weights: Tensor, wanted: bool) -> dict[str, Tensor]:
    """The attention that a model returns; its logits are never clamped."""
    return {"attention_logits": scores, "attention_probs": weights} if wanted else {}


def glorot(linear: nn.Linear) -> nn.Linear:
    """Weights by Glorot and Bengio (2010), biases 0."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
