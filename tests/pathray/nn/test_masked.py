"""Reductions over real members, and the Nyström attention's exact limit."""

from __future__ import annotations

import numpy as np
import torch

from pathray.nn.masked import masked_max, masked_mean, masked_softmax
from pathray.nn.nystrom import NystromAttention, pinv_times


def test_what_is_masked_may_be_anything() -> None:
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    dirty = x.masked_fill(~mask[..., None], torch.nan)
    for i in range(2):
        own = x[i, mask[i]].double().numpy()
        np.testing.assert_allclose(masked_mean(dirty, mask)[i].numpy(), own.mean(0), atol=1e-6)
        np.testing.assert_allclose(masked_max(dirty, mask)[i].numpy(), own.max(0), atol=1e-6)
    weights = masked_softmax(dirty[..., 0].bfloat16(), mask)
    assert weights.dtype == torch.float32 and not weights[~mask].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_the_steps_converge_to_the_inverse() -> None:
    torch.manual_seed(0)
    a = (3 * torch.eye(6, dtype=torch.float64) + torch.rand(1, 2, 6, 6, dtype=torch.float64)).softmax(-1)
    y = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(pinv_times(a, y, 12), torch.linalg.solve(a, y), atol=1e-9, rtol=1e-9)


def test_with_a_landmark_per_token_it_is_softmax_attention() -> None:
    torch.manual_seed(0)
    layer = NystromAttention(8, heads=2, landmarks=6, iterations=30, dropout=0.0).double()
    torch.nn.init.zeros_(layer.residual.weight)
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    q, k, v = (x @ layer.to_qkv.weight.T).reshape(6, 3, 2, 4).permute(1, 2, 0, 3)
    wanted = ((q @ k.mT / 2).softmax(-1) @ v).transpose(0, 1).reshape(6, 8) @ layer.to_out.weight.T + layer.to_out.bias
    torch.testing.assert_close(layer(x)[0], wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer.first(x).out[0, 0], wanted[0], atol=1e-6, rtol=1e-6)
