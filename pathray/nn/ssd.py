"""The scan of Mamba-2's state-space layer (Dao and Gu 2024, "Transformers are SSMs", arXiv 2405.21060), exact in torch.

    s_t = exp(Δ_t A) s_{t−1} + Δ_t B_t x_tᵀ,   y_t = C_tᵀ s_t   per head

In chunks (section 6): inside a chunk a masked matrix product, between chunks the recurrence of their last states. Time
and memory are linear in L. On CUDA, mamba-ssm's kernel is used where it is installed and runs. Not here: the layer
around it (pathray.nn.mamba2).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pathray.nn.regularise import at_least_float32
from pathray.nn.tracing import is_traced

CHUNK = 64
CHUNKS_AT_ONCE = (
    32  # bounds what is between inputs and outputs, so that it stays in the caches and the allocator's pools
)


def ssd_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK) -> Tensor:
    """x `[B, L, H, P]`, Δ = dt `[B, L, H]` ≥ 0, A = a `[H]` < 0, b and c `[B, L, S]` for all heads: y `[B, L, H, P]`.

    A step with Δ = 0 leaves the state as it is. Computed in float32 (float64 stays), also under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, dt, a, b, c = (at_least_float32(t) for t in (x, dt, a, b, c))
        if is_traced():
            return _chunked(x, dt, a, b, c, chunk, None)[0]
        if ssd_backend(x.device) == "mamba_ssm":
            return _kernel(x, dt, a, b, c, chunk)
        out, state = [], None
        pieces = [t.split(CHUNKS_AT_ONCE * chunk, dim=1) for t in (x, dt, b, c)]
        for x_i, dt_i, b_i, c_i in zip(*pieces, strict=True):
            y, state = _chunked(x_i, dt_i, a, b_i, c_i, chunk, state)
            out.append(y)
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)


@lru_cache(maxsize=16)
def ssd_backend(device: torch.device) -> str:
    """``"mamba_ssm" | "torch"``: the kernel if it runs on `device` and is right, tested on a few numbers."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            t = torch.linspace(0.1, 1.0, 5 * 16, device=device)
            x, dt, bc = t.reshape(1, 5, 1, 16), t[:5].reshape(1, 5, 1), t.reshape(1, 5, 16)
            a = -torch.ones(1, device=device)
            if torch.allclose(_kernel(x, dt, a, bc, bc, CHUNK), _chunked(x, dt, a, bc, bc, CHUNK, None)[0], rtol=1e-2):
                return "mamba_ssm"
    except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        pass
    return "torch"


def _kernel(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import (  # type: ignore[import-not-found]  # CUDA only, optional
        mamba_chunk_scan_combined,
    )

    out: Tensor = mamba_chunk_scan_combined(x, dt, a, b.unsqueeze(2), c.unsqueeze(2), chunk)
    return out


def _chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan from `state` `[B, S, H, P]`, 0 if None: y, and the state behind it."""
    B, L, H, P = x.shape
    S, count = b.shape[2], (L + chunk * (1 + is_traced()) - 1) // chunk  # a trace would fix a count of 1
    x, dt, b, c = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, count * chunk - L)) for t in (x, dt, b, c))
    x = (x * dt[..., None]).view(B, count, chunk, H, P)
    b, c = b.view(B, count, chunk, S), c.view(B, count, chunk, S)
    log_decay = (dt * a).view(B, count, chunk, H).cumsum(dim=2)  # from before the chunk to after each step
    total = log_decay[:, :, -1]

    inside = _decays_inside(log_decay.transpose(2, 3)) * (c @ b.transpose(2, 3))[:, :, None]  # [B, c, H, Q, Q]
    y: Tensor = (inside @ x.transpose(2, 3)).transpose(2, 3)
    to_end = (total[:, :, None] - log_decay).exp()[..., None]
    added = b.transpose(2, 3) @ (x * to_end).flatten(3)  # [B, c, S, H · P], by the steps of each chunk
    before, after = _states(added.unflatten(3, (H, P)), total, state)
    y = y + (c @ before.flatten(3)).unflatten(3, (H, P)) * log_decay.exp()[..., None]
    y = y.flatten(1, 2)  # a slice of a computed length would be a condition on L
    return y.index_select(1, torch.arange(L, device=y.device)) if is_traced() else y[:, :L], after


def _decays_inside(log_decay: Tensor) -> Tensor:
    """exp(Σ of the log-decays of steps j+1 … i) for j ≤ i, else 0: `[…, Q]` cumulated → `[…, Q, Q]`."""
    Q = log_decay.shape[-1]
    later = torch.ones(Q, Q, dtype=torch.bool, device=log_decay.device).triu(1)
    apart = log_decay[..., :, None] - log_decay[..., None, :]
    return apart.masked_fill(later, -torch.inf).exp()


def _states(added: Tensor, total: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk and behind the last, from what each adds `[B, c, S, H, P]` and its whole log-decay
    `[B, c, H]`."""
    if is_traced():
        before = _states_before_traced(added, total)
        return before, before[:, -1]
    state, states = torch.zeros_like(added[:, 0]) if state is None else state, []
    for new, decay in zip(added.unbind(1), total.exp().unbind(1), strict=True):
        states.append(state)
        state = state * decay[:, None, :, None] + new
    return torch.stack(states, dim=1), state


def _states_before_traced(added: Tensor, total: Tensor) -> Tensor:
    """The same without a loop, whose length a trace would fix: all pairs of chunks, quadratic in L / chunk."""
    after = F.pad(total.transpose(1, 2), (1, 0)).cumsum(dim=2)  # [B, H, c + 1]: log-decay before each chunk
    apart = after[:, :, :-1, None] - after[:, :, None, 1:]  # from after chunk j to before chunk i
    index = torch.arange(total.shape[1], device=total.device)
    decays = apart.masked_fill(index[:, None] <= index, -torch.inf).exp()
    return torch.einsum("bhij,bjshp->bishp", decays, added)
