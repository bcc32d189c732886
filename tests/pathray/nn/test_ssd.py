"""The chunked scan and the Mamba-2 layer against the recurrence, step by step in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pathray.nn import ssd
from pathray.nn.mamba2 import Mamba2
from pathray.nn.ssd import ssd_backend, ssd_scan


def sequential(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    state, out = x.new_zeros(x.shape[0], x.shape[2], b.shape[2], x.shape[3]), []
    for t in range(x.shape[1]):
        new = b[:, t, None, :, None] * (dt[:, t, :, None] * x[:, t])[:, :, None]
        state = state * (dt[:, t] * a).exp()[..., None, None] + new
        out.append((c[:, t, None, :, None] * state).sum(2))
    return torch.stack(out, 1)


def inputs(L: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, b, c = (torch.randn(2, L, *s, generator=g, dtype=torch.float64) for s in ((3, 4), (5,), (5,)))
    return [x, torch.rand(2, L, 3, generator=g, dtype=torch.float64), -torch.rand(3, generator=g).double() * 4, b, c]


@pytest.mark.parametrize(("length", "at_once"), [(1, 32), (7, 32), (8, 32), (9, 32), (40, 32), (40, 2), (33, 1)])
def test_the_scan_is_the_recurrence(length: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd, "CHUNKS_AT_ONCE", at_once)
    values = [v.requires_grad_() for v in inputs(length)]
    found, wanted = ssd_scan(*values, chunk=8), sequential(*values)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(wanted)
    grads = [torch.autograd.grad((out * weights).sum(), values) for out in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_the_scan_survives_decays_that_underflow() -> None:
    x, dt, a, b, c = (v.float().requires_grad_() for v in inputs(64))
    out = ssd_scan(x, dt * 300, a * 10, b, c, chunk=16)
    grads = torch.autograd.grad(out.sum(), (x, dt, a, b, c))
    assert bool(out.isfinite().all()) and all(bool(g.isfinite().all()) for g in grads)


def test_a_cpu_has_the_torch_scan() -> None:
    assert ssd_backend(torch.device("cpu")) == "torch"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mamba_layer_is_the_published_equations(reverse: bool) -> None:
    torch.manual_seed(0)
    layer = Mamba2(6, state=5, head_dim=4, chunk=4).double()
    u = torch.randn(2, 11, 6, dtype=torch.float64)
    seen = u.flip(1) if reverse else u
    z, mixed, dt = (seen @ layer.in_proj.weight.T).split([12, 22, 3], dim=2)
    kernel, before = layer.conv1d.weight[:, 0], F.pad(mixed, (0, 0, 3, 0))
    mixed = F.silu(sum(before[:, j : j + 11] * kernel[:, j] for j in range(4)) + layer.conv1d.bias)
    x, b, c = mixed.split([12, 5, 5], dim=2)
    x = x.reshape(2, 11, 3, 4)
    y = sequential(x, F.softplus(dt + layer.dt_bias), -layer.A_log.exp(), b, c) + layer.D[:, None] * x
    y = y.flatten(2) * F.silu(z)
    y = y / (y.square().mean(2, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    wanted = y @ layer.out_proj.weight.T
    found = layer(u, reverse=reverse)
    torch.testing.assert_close(found, wanted.flip(1) if reverse else wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_reaches_neither_direction(reverse: bool) -> None:
    torch.manual_seed(0)
    layer = Mamba2(6, state=5, head_dim=4, chunk=4).double()
    u = torch.randn(1, 9, 6, dtype=torch.float64)
    padded = torch.cat([u, torch.full((1, 8, 6), torch.nan, dtype=torch.float64)], 1)
    mask = torch.arange(17)[None] < 9
    torch.testing.assert_close(layer(padded, mask, reverse)[:, :9], layer(u, None, reverse), atol=1e-12, rtol=1e-10)
