"""Reductions over the real members of padded sequences, in float32 also under autocast. Not here: attention itself."""

from __future__ import annotations

import torch
from torch import Tensor

from pathray.nn.regularise import at_least_float32


def masked_softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax over the last axis of `[…, N]` in float32 (float64 stays), exactly 0 where `mask`, which broadcasts to
    it, is False. A row without a True is NaN."""
    logits = at_least_float32(logits)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=-1)


def masked_mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over N of `[B, N, D]` in float32 (float64 stays), over the True of `mask` `[B, N]`: `[B, D]`. What is masked
    may be anything. A row without a True is NaN."""
    if mask is None:
        return x.mean(dim=1, dtype=_sum_dtype(x))
    kept = x.masked_fill(~mask[..., None], 0.0)
    return kept.sum(dim=1, dtype=_sum_dtype(x)) / mask.sum(dim=1, keepdim=True)


def masked_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maximum over N of `[B, N, D]`, over the True of `mask` `[B, N]`: `[B, D]`. A row without a True is −inf."""
    return (x if mask is None else x.masked_fill(~mask[..., None], -torch.inf)).amax(dim=1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
