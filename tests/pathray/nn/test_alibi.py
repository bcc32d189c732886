"""Attention with linear biases against the dense formula in float64."""

from __future__ import annotations

import pytest
import torch

from pathray.nn import alibi
from pathray.nn.alibi import alibi_attention, alibi_slopes


def test_slopes_are_a_geometric_sequence() -> None:
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([0.5**i for i in range(1, 9)]))


@pytest.mark.parametrize("queries", [4, 100])
def test_distance_lowers_the_score_and_the_first_token_has_none(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alibi, "QUERIES", queries)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 11, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    places, slopes = 7 * torch.rand(2, 11, 2, dtype=torch.float64), alibi_slopes(2).double()
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 8:] = False
    wanted = torch.zeros(2, 2, 11, 3, dtype=torch.float64)
    for b in range(2):
        for h in range(2):
            for i in range(11):
                keys = [j for j in range(11) if mask[b, j]]
                away = [0.0 if 0 in (i, j) else float((places[b, i] - places[b, j]).norm()) for j in keys]
                scores = torch.stack([q[b, h, i] @ k[b, h, j] / 3**0.5 for j in keys])
                weights = (scores - slopes[h] * torch.tensor(away, dtype=torch.float64)).softmax(0)
                wanted[b, h, i] = weights @ v[b, h, keys]
    found = alibi_attention(q, k, v, places, slopes, mask)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    for a, b_ in zip(
        torch.autograd.grad(found.square().sum(), (q, k, v)),
        torch.autograd.grad(wanted.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b_, atol=1e-11, rtol=1e-11)
