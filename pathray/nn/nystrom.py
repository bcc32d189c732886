"""Nyström attention (Xiong et al. 2021, "Nyströmformer", arXiv 2102.03902): linear in the number of tokens.

    softmax(Q Kᵀ) V ≈ softmax(Q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · (softmax(Q̃ Kᵀ) V) + conv(V)

Q̃ and K̃ are the means of m segments. The products are taken from the right, and both large softmaxes are fused, so that
no T × m matrix is kept. As in the published code, tokens are padded in front with zeros to a multiple of m, and these
zeros are keys too: weights trained with it compute what they did. Not here: norms and residuals around it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.regularise import at_least_float32
from pathray.nn.tracing import is_traced


class FirstToken(NamedTuple):
    """`out` `[B, 1, E]` of the first token; its exact scores q₀·k_t/√Dh to all tokens, `[B, H, T]`, if asked for."""

    out: Tensor
    scores: Tensor | None


class NystromAttention(nn.Module):
    """`[B, T, E]` → `[B, T, E]` with `heads` heads and `landmarks` segments m."""

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        assert dim % heads == 0 and kernel % 2 == 1, (dim, heads, kernel)
        self.heads, self.landmarks, self.iterations, self.dropout = heads, landmarks, iterations, dropout
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.residual = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """With `lengths` `[B]` int, tokens from there on are padding: they must be 0, and so are their outputs."""
        tokens = x.shape[1]
        x, segments, bias = self._layout(x, lengths)
        q, k, v = self._heads(x, 0, 3)
        q_mean, k_mean = self._heads(segments, 0, 2)
        means = _attend(q_mean, k, v, bias)
        out = _attend(q, k_mean, self._through_pinv(q_mean, k_mean, means)) + self.residual(v)
        out = self._project(out[:, :, x.shape[1] - tokens :])
        return out if lengths is None else out.masked_fill(_beyond(lengths, tokens)[..., None], 0.0)

    def first(self, x: Tensor, lengths: Tensor | None = None, scores: bool = False) -> FirstToken:
        """The output of the first token alone: queries of the others and the outputs that need them are left out."""
        tokens = x.shape[1]
        x, segments, bias = self._layout(x, lengths)
        at = x.shape[1] - tokens  # behind the padding in front
        k, v = self._heads(x, 1, 3)
        q_mean, k_mean = self._heads(segments, 0, 2)
        (q,) = self._heads(x[:, at : at + 1], 0, 1)
        means = _attend(q_mean, k, v, bias)
        out = _attend(q, k_mean, self._through_pinv(q_mean, k_mean, means)) + self._first_residual(v[:, :, at:])
        logits = (q @ k[:, :, at:].transpose(2, 3)).squeeze(2) / q.shape[-1] ** 0.5 if scores else None
        return FirstToken(self._project(out), logits)

    def _layout(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The padded tokens, the means of their segments `[B, m, E]`, and a bias of keys `[B, 1, 1, T]`."""
        m = self.landmarks
        if lengths is not None:
            return self._masked_layout(x, lengths)
        x = F.pad(x, (0, 0, -x.shape[1] % m, 0))
        return x, x.unflatten(1, (m, -1)).mean(dim=2), None

    def _masked_layout(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each bag as it is alone, without its front padding: one zero token stands for all of it, with the logarithm
        of their number as its bias."""
        B, T, E = x.shape
        m = self.landmarks
        front = -lengths % m
        size = (lengths + front) // m  # of a segment, per bag
        longest = (T + m * (1 + is_traced()) - 1) // m  # a trace would fix a length of 1
        slot = torch.arange(m * longest, device=x.device)
        segment = slot // longest
        inside = slot - segment * longest  # ONNX takes no remainder by a traced number
        token = segment * size[:, None] + inside - front[:, None]  # [B, m · longest]
        real = (inside < size[:, None]) & (token >= 0)
        members = x.gather(1, token.clamp(0, T - 1)[..., None].expand(-1, -1, E)).masked_fill(~real[..., None], 0.0)
        means = members.view(B, m, longest, E).sum(dim=2) / size[:, None, None]
        keys = torch.zeros(B, T, device=x.device).masked_fill(_beyond(lengths, T), -torch.inf)
        bias = torch.cat([front[:, None].to(keys.dtype).log(), keys], dim=1)
        return F.pad(x, (0, 0, 1, 0)), means.to(x.dtype), bias[:, None, None]

    def _heads(self, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Some of q, k, v (0, 1, 2), each `[B, H, T, Dh]`."""
        E = x.shape[2]
        out = F.linear(x, self.to_qkv.weight[start * E : stop * E])
        parts: tuple[Tensor, ...] = out.unflatten(2, (stop - start, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return parts

    def _through_pinv(self, q: Tensor, k: Tensor, y: Tensor) -> Tensor:
        """pinv(softmax(q kᵀ/√Dh)) y in float32, also under autocast."""
        with torch.autocast(q.device.type, enabled=False):
            q, k, y = (at_least_float32(t) for t in (q, k, y))
            weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
            return pinv_times(weights, y, self.iterations)

    def _first_residual(self, v: Tensor) -> Tensor:
        """The convolution at the first token, before which everything is 0: `[B, H, T, Dh]` → `[B, H, 1, Dh]`."""
        kernel = self.residual.weight[:, 0, :, 0]
        right = kernel[:, kernel.shape[1] // 2 :]
        v = v[:, :, : right.shape[1]]
        return (right[:, : v.shape[2], None] * v).sum(dim=2, keepdim=True)

    def _project(self, out: Tensor) -> Tensor:
        return F.dropout(self.to_out(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


def pinv_times(a: Tensor, y: Tensor, iterations: int) -> Tensor:
    """pinv(a) y for `a` `[B, H, m, m]` and `y` `[B, H, m, P]` by `iterations` of (Razavi et al. 2014; equation 11)

        Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))),   Z₀ = Aᵀ / (max row sum · max column sum)

    with the maxima over the heads of a bag. The last step is applied to y and never formed.
    """
    rows, columns = a.abs().sum(dim=-1), a.abs().sum(dim=-2)
    z = a.transpose(2, 3) / (rows.amax(dim=(1, 2)) * columns.amax(dim=(1, 2)))[:, None, None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations - 1):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    inner = y
    for factor in (7, 15, 13):
        inner = factor * y - a @ (z @ inner)
    return 0.25 * z @ inner


def _beyond(lengths: Tensor, tokens: int) -> Tensor:
    return torch.arange(tokens, device=lengths.device) >= lengths[:, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ/√Dh + bias) v, `[B, H, T, Dh]`, fused; in q's dtype."""
    mask = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
