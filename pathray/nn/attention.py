"""Scaled dot-product attention, one function for every device and layout; the fast paths are nobody else's business.

A packed sequence (several images of several sizes side by side, batch 1) attends within its segments only: by a
variable-length kernel where the device runs one, otherwise by one SDPA call per run of equal lengths, which is exact,
needs no mask and is the fastest form on a CPU. The N x N matrix is never built, except where PyTorch itself has
nothing better: XLA, and dropout on a CPU.

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

    q, k, v `[B, N, H, Dh]` (k and v may have another N than q when nothing is packed) -> `[B, N, H, Dh]` in v's dtype.
    `lengths`: q, k, v are `[1, Σ lengths, H, Dh]` and a token sees its own segment only. `key_mask` `[B, N]` bool, True
    where a key is real; a row without any real key is the caller's mistake. `dropout` on the attention weights.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)
    if lengths is None:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        return _sdpa(q, k, v, mask, dropout)
    assert key_mask is None, "a packed sequence holds no padding"
    assert q.shape == k.shape == v.shape and q.shape[:2] == (1, sum(lengths)), (q.shape, k.shape, v.shape, lengths)
    if len(set(lengths)) > 1:
        return _PACKED[attention_backend(v.device, v.dtype, v.shape[-1])](q, k, v, tuple(lengths), dropout)
    return _per_run(q, k, v, tuple(lengths), dropout)


@lru_cache(maxsize=64)
def attention_backend(device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> str:
    """``"varlen" | "xformers" | "sdpa"``: the first form of packed attention that really runs, forward and backward,
    on `device` in `dtype` for heads of that width. Seen by running it once on a few numbers: importing xformers, say,
    proves nothing."""
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
            raise RuntimeError("the kernel runs but computes something else")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def _per_run(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    """Neighbouring segments of one length form a batch `[count, length, H, Dh]`."""
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]  # split, not sliced: a slice's gradient is filled with zeros
    out = []
    for (length, count), *part in zip(runs, *(torch.split(t[0], sizes) for t in (q, k, v)), strict=True):
        q_run, k_run, v_run = (t.unflatten(0, (count, length)) for t in part)
        out.append(_sdpa(q_run, k_run, v_run, None, dropout).flatten(0, 1))
    return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    """Flash attention over segment boundaries (torch >= 2.10, half precision). Has no dropout."""
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
    """Which segment a packed token belongs to, `[Σ lengths]` int64. Cached: never write into it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve training afterwards
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
