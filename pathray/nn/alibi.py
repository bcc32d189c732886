"""Attention with linear biases in two dimensions: the farther apart two tokens are, the less they attend to each other.

ALiBi (Press et al. 2022, arXiv 2108.12409) with Euclidean distances, as in TITAN (Ding et al. 2024, arXiv 2411.19666).
Queries are taken in pieces, so that memory is linear in the tokens; time is quadratic. Not here: blocks, units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pathray.nn.tracing import is_traced

QUERIES = 512  # at a time


def alibi_slopes(heads: int) -> Tensor:
    """2^(−8 h / H) for h = 1 … H (section 3), `[H]` float32."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def alibi_attention(
    q: Tensor, k: Tensor, v: Tensor, places: Tensor, slopes: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """softmax_j(q_i·k_j/√Dh − slope·|p_i − p_j|) v_j for q, k, v `[B, H, T, Dh]` and places `[B, T, 2]`.

    The first token has no place: its distances are 0. `key_mask` `[B, T]` is True for real keys.
    """
    T = q.shape[2]
    if is_traced() or T <= QUERIES:
        return _piece(q, k, v, places, slopes, key_mask, 0)
    out = []
    for start in range(0, T, QUERIES):
        inputs = (q[:, :, start : start + QUERIES], k, v, places, slopes, key_mask, start)
        keep = not (torch.is_grad_enabled() and q.requires_grad)
        out.append(_piece(*inputs) if keep else checkpoint(_piece, *inputs, use_reentrant=False))
    return torch.cat(out, dim=2)


def _piece(
    q: Tensor, k: Tensor, v: Tensor, places: Tensor, slopes: Tensor, key_mask: Tensor | None, start: int
) -> Tensor:
    mine = places[:, start : start + q.shape[2]]
    apart = (mine[:, :, None] - places[:, None]).square().sum(dim=3).sqrt()
    placed = torch.arange(places.shape[1], device=q.device) > 0
    apart = apart * (placed[start : start + q.shape[2], None] & placed)
    bias = -slopes[:, None, None] * apart[:, None]
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask[:, None, None], -torch.inf)
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=bias.to(q.dtype))
