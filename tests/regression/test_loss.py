"""Losses against float64 NumPy and scipy, and as sums that do not depend on how a batch is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from regression.config import LossConfig
from regression.loss import image_losses

G = np.random.default_rng(0)
P, Z = G.normal(size=(9, 7)), 2 * G.normal(size=(9, 7))


def oracle(config: LossConfig) -> np.ndarray:
    d = P - Z
    if config.kind == "huber":
        delta = config.huber_delta
        return np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2)).mean(axis=1)
    squared = (d**2).mean(axis=1)
    if config.kind == "mse":
        return squared
    r = np.array([stats.pearsonr(P[i], Z[i]).statistic for i in range(len(P))])
    return (1 - config.pearson_weight) * squared + config.pearson_weight * (1 - r)


@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig("huber", 0.7), LossConfig("mix", pearson_weight=0.3), LossConfig("mix", 1, 1.0)],
    ids=lambda c: f"{c.kind}-{c.pearson_weight}",
)
def test_each_images_loss_is_the_formula(config):
    got = image_losses(torch.from_numpy(P), torch.from_numpy(Z), config)
    assert got.numpy() == pytest.approx(oracle(config), abs=1e-6)
    half = image_losses(torch.from_numpy(P).bfloat16(), torch.from_numpy(Z).float(), config)
    assert half.dtype == torch.float32 and half.numpy() == pytest.approx(oracle(config), rel=0.05, abs=0.05)


@pytest.mark.parametrize("kind", ["mse", "huber", "mix"])
def test_the_sum_over_a_batch_does_not_depend_on_how_it_is_cut(kind):
    """Parts of 4, 4 and 1: the tail weighs one image, not a third of the batch."""
    p, z = torch.from_numpy(P).requires_grad_(), torch.from_numpy(Z)
    whole = image_losses(p, z, LossConfig(kind)).sum() / 9
    parts = sum(image_losses(p[i : i + 4], z[i : i + 4], LossConfig(kind)).sum() for i in (0, 4, 8)) / 9
    a, b = (torch.autograd.grad(loss, p)[0] for loss in (whole, parts))
    assert whole.item() == pytest.approx(parts.item(), abs=1e-14) and torch.allclose(a, b, atol=1e-14)


def test_a_constant_prediction_has_a_finite_gradient():
    p = torch.full((2, 5), 0.3, requires_grad=True)
    image_losses(p, torch.randn(2, 5), LossConfig("mix")).sum().backward()
    assert torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0
