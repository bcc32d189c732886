"""Scaled dot-product attention: one function for every device and layout, which hides the fast paths.

In a packed sequence (images of several sizes concatenated, batch 1) tokens attend within their segments only. This uses
a variable-length kernel if the device has one, otherwise one SDPA call per run of equal lengths, which is exact, needs
no mask and is fastest on a CPU. The N x N matrix is never built, except where PyTorch has no alternative: XLA, and
dropout on a CPU.

Not here: projections, heads and positions (pathray.nn.blocks, pathray.nn.positions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float], Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Sequence[int] | None = None,
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √Dh) v per head.

    q, k, v `[B, N, H, Dh]` (without packing, k and v may differ from q in N) -> `[B, N, H, Dh]` in v's dtype.
    `lengths`: q, k, v are `[1, Σ lengths, H, Dh]`, and a token sees its own segment only. `key_mask` `[B, N]` bool is
    True for real keys; every row must have one. `dropout` applies to the attention weights.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)
    if lengths is None:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        return _sdpa(q, k, v, mask, dropout)
    assert key_mask is None, "a packed sequence has no padding"
    assert q.shape == k.shape == v.shape and q.shape[:2] == (1, sum(lengths)), (q.shape, k.shape, v.shape, lengths)
    if len(set(lengths)) > 1:
        return _PACKED[attention_backend(v.device, v.dtype, v.shape[-1])](q, k, v, tuple(lengths), dropout)
    return _per_run(q, k, v, tuple(lengths), dropout)


@lru_cache(maxsize=64)
def attention_backend(device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> str:
    """``"varlen" | "xformers" | "sdpa"``: the first form of packed attention that works, forward and backward, on
    `device` in `dtype` for heads of this width. It is tested by running it once on a few numbers, because a successful
    import (of xformers, for example) does not prove that it runs."""
    for name in ("varlen", "xformers"):
        try:
            _try(_PACKED[name], device, dtype, head_dim)
        except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            continue
        return name
    return "sdpa"


def _try(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.linspace(-1, 1, 5 * head_dim).reshape(1, 5, 1, head_dim).to(device, dtype).requires_grad_()
        out = kernel(x, x, x, (2, 3), 0.0)
        (grad,) = torch.autograd.grad(out.float().sum(), x)
        expected = _per_run(x, x, x, (2, 3), 0.0)
        if not (bool(grad.isfinite().all()) and torch.allclose(out.float(), expected.float(), atol=0.05)):
            raise RuntimeError("the kernel runs but its result is wrong")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def _per_run(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    """One SDPA call per run: neighbouring segments of equal length form a batch `[count, length, H, Dh]`."""
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]  # split instead of slicing, whose gradient is padded with zeros
    out = []
    for (length, count), *part in zip(runs, *(torch.split(t[0], sizes) for t in (q, k, v)), strict=True):
        q_run, k_run, v_run = (t.unflatten(0, (count, length)) for t in part)
        out.append(_sdpa(q_run, k_run, v_run, None, dropout).flatten(0, 1))
    return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    """Flash attention over segment boundaries (torch >= 2.10, half precision), without dropout."""
    if dropout:
        return _per_run(q, k, v, lengths, dropout)
    from torch.nn.attention.varlen import varlen_attn  # absent before torch 2.10

    ends = _boundaries(lengths, q.device)
    out = varlen_attn(q[0], k[0], v[0], ends, ends, max(lengths), max(lengths))
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


def _xformers(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    out: Tensor = memory_efficient_attention(q, k, v, attn_bias=_block_diagonal(lengths, q.device), p=dropout)
    return out


@lru_cache(maxsize=32)
def segment_ids(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """The segment of each packed token, `[Σ lengths]` int64. Cached: do not modify it."""
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be used in training
        sizes = torch.tensor(lengths)
        return torch.arange(len(lengths)).repeat_interleave(sizes, output_size=sum(lengths)).to(device)


@lru_cache(maxsize=32)
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        ends = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(device)


@lru_cache(maxsize=32)
def _block_diagonal(lengths: tuple[int, ...], device: torch.device) -> object:
    from xformers.ops.fmha import BlockDiagonalMask

    with torch.inference_mode(False):
        return BlockDiagonalMask.from_seqlens(list(lengths), device=device)


_PACKED: dict[str, Kernel] = {"varlen": _varlen, "xformers": _xformers, "sdpa": _per_run}
