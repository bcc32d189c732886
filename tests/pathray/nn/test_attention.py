"""One function, every path: each backend against a full-matrix float64 oracle, packed against one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pathray.nn import attention as module
from pathray.nn.attention import attention, attention_backend
from tests.builders.plain_vit import plain_attention

H, DH = 3, 16


def qkv(batch: int, n: int, m: int | None = None, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, H, DH), *[(batch, m or n, H, DH)] * 2]
    return [torch.randn(s, generator=g).requires_grad_() for s in shapes]


def gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), tensors))


def assert_same(a: Tensor, b: Tensor, tensors: list[Tensor], doubles: list[Tensor] | None = None) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)
    for x, y in zip(gradients(a, tensors), gradients(b, doubles or tensors), strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (65, 65), (5, 33)])
def test_attention_is_the_full_matrix_formula_forward_and_backward(n, m):
    tensors = qkv(2, n, m)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    assert_same(attention(*tensors), plain_attention(*doubles), tensors, doubles)


def test_masked_keys_take_no_part():
    tensors = qkv(2, 9)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, 6:] = False
    real[1, [1, 4]] = False
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected = plain_attention(*doubles, real[:, None, :].expand(2, 9, 9))
    assert_same(attention(*tensors, key_mask=real), expected, tensors, doubles)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(0, 99))
def test_packed_crops_are_exact_forward_and_backward(lengths, seed):
    tensors = qkv(1, sum(lengths), seed=seed)
    segments = zip(*(t.split(lengths, dim=1) for t in tensors), strict=True)
    one_by_one = torch.cat([attention(*s) for s in segments], dim=1)
    assert_same(attention(*tensors, lengths=lengths), one_by_one, tensors)


@pytest.mark.parametrize("lengths", [[4, 4, 4, 9, 9, 4], [5, 5], [1, 1, 1, 2], [30]])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "xformers"])
def test_every_backend_is_the_block_diagonal_matrix(backend, device, lengths):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    dtype = torch.float32 if backend == "sdpa" else torch.bfloat16
    if backend != "sdpa":
        try:
            module._try(module._PACKED[backend], torch.device(device), dtype, 64)
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            pytest.skip(f"{backend} does not run on {device}: {error}")
    g = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1, sum(lengths), H, 64, generator=g).to(device, dtype).requires_grad_() for _ in range(3)]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    expected = plain_attention(*doubles, (segment[:, None] == segment)[None])
    out = module._PACKED[backend](*tensors, tuple(lengths), 0.0)
    tolerance = 1e-5 if backend == "sdpa" else 2e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    upstream = torch.ones_like(expected)
    ours = torch.autograd.grad(out, tensors, upstream.to(dtype))
    for a, b in zip(ours, torch.autograd.grad(expected, doubles, upstream), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_a_segment_never_sees_its_neighbours():
    lengths = [6, 6, 3]
    tensors = [t.detach() for t in qkv(1, 15)]
    before = attention(*tensors, lengths=lengths)
    others = [t.clone() for t in tensors]
    for t in others:
        t[:, 6:12] += 100
    after = attention(*others, lengths=lengths)
    assert torch.equal(before[:, :6], after[:, :6]) and torch.equal(before[:, 12:], after[:, 12:])
    assert not torch.equal(before[:, 6:12], after[:, 6:12])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, t.numel() if isinstance(t, Tensor) else 0)
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_the_full_matrix_is_never_built(masked):
    n = 1024
    tensors = qkv(1, n)
    mask = torch.ones(1, n, dtype=torch.bool) if masked else None
    with Largest() as largest:
        attention(*tensors, key_mask=mask).sum().backward()
    assert 0 < largest.elements <= 2 * n * H * DH < n * n
    with Largest() as largest:
        attention(*tensors, lengths=[1000, 24]).sum().backward()
    assert 0 < largest.elements <= 2 * n * H * DH


def test_normalised_queries_in_float32_meet_values_in_bfloat16():
    q, k, v = (t.detach() for t in qkv(1, 8))
    out = attention(q, k, v.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(q, k, v), rtol=0.05, atol=0.05)


@pytest.fixture
def fresh_probe():
    attention_backend.cache_clear()
    yield
    attention_backend.cache_clear()


def test_a_cpu_runs_sdpa_whatever_is_installed(fresh_probe):
    assert attention_backend(torch.device("cpu")) == "sdpa"
    assert attention_backend(torch.device("cpu"), torch.float32) == "sdpa"


def test_the_backend_is_the_first_that_runs_and_is_right_and_is_tried_once(fresh_probe, monkeypatch):
    calls = []

    def importable_but_unable(*_):
        calls.append("varlen")
        raise NotImplementedError("no operator for this device")

    def runs(q, k, v, lengths, dropout):
        calls.append("xformers")
        return module._per_run(q, k, v, lengths, dropout)

    monkeypatch.setitem(module._PACKED, "varlen", importable_but_unable)
    monkeypatch.setitem(module._PACKED, "xformers", runs)
    device = torch.device("cpu")
    assert [attention_backend(device), attention_backend(device)] == ["xformers", "xformers"]
    assert calls == ["varlen", "xformers"]
    attention_backend.cache_clear()
    monkeypatch.setitem(module._PACKED, "xformers", lambda q, k, v, lengths, dropout: v + 1)
    assert attention_backend(device) == "sdpa"


def test_what_inference_made_serves_training():
    q, k, v = qkv(1, 12)
    module._boundaries.cache_clear()
    module.segment_ids.cache_clear()
    with torch.inference_mode():
        attention(q, k, v, lengths=[5, 7])
        kept = [module._boundaries((5, 7), torch.device("cpu")), module.segment_ids((5, 7), torch.device("cpu"))]
    assert not any(t.is_inference() for t in kept)
    assert kept[0].tolist() == [0, 5, 12] and kept[1].tolist() == [0] * 5 + [1] * 7
    attention(q, k, v, lengths=[5, 7]).sum().backward()
