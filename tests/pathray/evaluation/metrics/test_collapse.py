"""RankMe and feature std against numpy and known ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathray.evaluation.metrics.collapse import feature_std, rankme


def test_rankme_is_the_papers_formula_in_float64():
    x = np.random.default_rng(0).normal(size=(200, 32)) * np.linspace(0.1, 3, 32)
    s = np.linalg.svd(x, compute_uv=False)
    p = s / np.abs(s).sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    assert float(rankme(torch.from_numpy(x))) == pytest.approx(expected, rel=1e-12)
    assert float(rankme(torch.from_numpy(x).float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rankme_of_equal_directions_is_their_number(rank):
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(100, rank)))
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(64, rank)))
    assert float(rankme(torch.from_numpy(q @ basis.T))) == pytest.approx(rank, rel=1e-3)


def test_rankme_of_collapsed_and_broken_features():
    assert float(rankme(torch.ones(50, 8))) == pytest.approx(1, rel=1e-4)
    assert float(rankme(torch.zeros(50, 8))) == 1
    assert np.isnan(float(rankme(torch.full((4, 3), float("nan")))))
    scaled = torch.randn(50, 8)
    assert float(rankme(scaled)) == pytest.approx(float(rankme(scaled * 1e-3)), rel=1e-6)


def test_feature_std_is_the_mean_deviation_of_the_dimensions():
    x = torch.randn(500, 6) * torch.tensor([0.0, 1, 2, 3, 4, 5])
    assert float(feature_std(x)) == pytest.approx(float(np.std(x.numpy(), axis=0, ddof=1).mean()), rel=1e-5)
    assert float(feature_std(torch.ones(9, 4) * 7)) == 0
    assert feature_std(x.bfloat16()).dtype == torch.float32
