"""Regularisers of embeddings against NumPy and SciPy in float64, and what they do to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from pathray.nn.regularise import covariance_term, random_directions, sigreg, variance_term


def batch(rows: int = 24, dim: int = 7, scale: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim)) * scale + rng.normal(size=dim)


def epps_pulley(x: np.ndarray) -> float:
    """Of one projection `[N]`, over the whole interval, with complex numbers."""
    t = np.linspace(-5, 5, 17)
    normal = np.exp(-(t**2) / 2)
    error = np.abs(np.exp(1j * np.outer(x, t)).mean(axis=0) - normal) ** 2
    return len(x) * float(trapezoid(error * normal, t))


def test_variance_and_covariance_are_those_of_numpy() -> None:
    x = batch()
    covariance = np.cov(x.T)
    variance = np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    apart = ((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) / x.shape[1]
    assert 0 < variance < 1
    np.testing.assert_allclose(variance_term(torch.tensor(x)).item(), variance, rtol=1e-12)
    np.testing.assert_allclose(covariance_term(torch.tensor(x)).item(), apart, rtol=1e-12)
    np.testing.assert_allclose(covariance_term(torch.tensor(x, dtype=torch.float32)).item(), apart, rtol=1e-5)


def test_sigreg_is_the_mean_statistic_over_the_projections() -> None:
    x, directions = batch(), random_directions(7, 5, seed=3).double()
    expected = np.mean([epps_pulley(x @ a) for a in directions.numpy().T])
    np.testing.assert_allclose(sigreg(torch.tensor(x), directions).item(), expected, rtol=1e-12)
    np.testing.assert_allclose(sigreg(torch.tensor(x, dtype=torch.float32), directions).item(), expected, rtol=1e-4)


def test_directions_are_unit_vectors_that_a_seed_decides() -> None:
    a = random_directions(6, 4, seed=1)
    np.testing.assert_allclose(a.norm(dim=0).numpy(), 1, rtol=1e-6)
    assert torch.equal(a, random_directions(6, 4, seed=1)) and not torch.equal(a, random_directions(6, 4, seed=2))


@pytest.mark.parametrize("collapsed", ["point", "line", "narrow"])
def test_sigreg_is_small_for_normal_embeddings_and_large_for_collapsed_ones(collapsed: str) -> None:
    normal = torch.randn(512, 8, dtype=torch.float64)
    x = {
        "point": torch.zeros_like(normal),
        "line": normal[:, :1] * torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64),
        "narrow": normal * 0.1,
    }[collapsed]
    directions = random_directions(8, 64, seed=0)
    assert sigreg(normal, directions) < 2 < 20 < sigreg(x, directions) < 512


@pytest.mark.parametrize("name", ["variance", "covariance", "sigreg"])
def test_descent_on_a_regulariser_opens_collapsed_embeddings(name: str) -> None:
    directions = random_directions(4, 64, seed=0)
    terms = {
        "variance": variance_term,
        "covariance": covariance_term,
        "sigreg": lambda x: sigreg(x, directions),
    }
    start = 0.5 * torch.randn(64, 1) * torch.ones(1, 4) + 0.05 * torch.randn(64, 4)  # one dimension four times
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        terms[name](x).backward()
        optimizer.step()
    moved = x.detach()
    assert terms[name](moved) < 0.5 * terms[name](start)
    if name != "variance":
        before, after = (torch.corrcoef(v.T).fill_diagonal_(0).abs().max() for v in (start, moved))
        assert after < 0.5 < 0.9 < before


@pytest.mark.parametrize("name", ["variance", "covariance", "sigreg"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    directions = random_directions(3, 4, seed=2)
    terms = {"variance": variance_term, "covariance": covariance_term, "sigreg": lambda x: sigreg(x, directions)}
    x = torch.tensor(batch(rows=5, dim=3), requires_grad=True)
    assert torch.autograd.gradcheck(terms[name], (x,))


def test_half_precision_is_computed_in_float32_under_autocast() -> None:
    x = torch.tensor(batch(), dtype=torch.float32)
    directions = random_directions(7, 5, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [variance_term(x), covariance_term(x), sigreg(x, directions)]
    assert [v.item() for v in values] == [
        variance_term(x).item(),
        covariance_term(x).item(),
        sigreg(x, directions).item(),
    ]
