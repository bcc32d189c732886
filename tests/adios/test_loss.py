"""The contrast and the penalties against float64 NumPy, their optima, and what half precision may not touch."""

import math

import numpy as np
import pytest
import torch

from adios.loss import PENALTIES, contrast, mask_statistics, penalty


def unit_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


def by_hand(all_a: np.ndarray, all_b: np.ndarray, image: int, temperature: float) -> float:
    """L of one image and one view: both directions over the 2G − 1 others."""
    vectors = np.concatenate([all_a, all_b])
    losses = []
    for own, other in ((image, len(all_a) + image), (len(all_a) + image, image)):
        similar = vectors @ vectors[own] / temperature
        losses.append(-similar[other] + np.log(sum(math.exp(s) for i, s in enumerate(similar) if i != own)))
    return sum(losses) / 2


@pytest.mark.parametrize(("first", "count"), [(0, 5), (2, 3)])
def test_the_contrast_is_its_formula_for_every_view_and_wherever_a_rank_stands(first, count):
    all_a, all_b = unit_vectors(5, 7), unit_vectors(4, 5, 7, seed=1)
    own = slice(first, first + count)
    temperature = torch.tensor(0.13, dtype=torch.float64)
    found = contrast(all_a[own], all_b[:, own], all_a, all_b, temperature, first)
    expected = [[by_hand(all_a.numpy(), b.numpy(), i, 0.13) for i in range(first, first + count)] for b in all_b]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_gradients_reach_both_sides_of_the_contrast_and_the_temperature_is_data():
    a, b = unit_vectors(3, 4).requires_grad_(), unit_vectors(2, 3, 4, seed=1).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: contrast(x, y, x, y, temperature), (a, b))


def test_the_contrast_is_not_rounded_by_autocast():
    a, b, tau = unit_vectors(6, 8).float(), unit_vectors(2, 6, 8, seed=1).float(), torch.tensor(0.05)
    exact = contrast(a, b, a, b, tau)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast(a, b, a, b, tau), exact)


def masks_of(shares: list[list[float]], size: int = 4) -> torch.Tensor:
    """Masks `[B, N, size, size]` of those mean activations."""
    return torch.tensor(shares, dtype=torch.float64)[:, :, None, None].expand(-1, -1, size, size)


SHARES = [[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05]]


@pytest.mark.parametrize("target", [None, 0.2, 0.7])
def test_penalties_are_their_formulas(target):
    m = np.array(SHARES)
    m = m if target is None else m ** (math.log(0.5) / math.log(target))
    expected = {
        "inverse_sin": (1 / (np.sin(np.pi * m) + 1e-10)).sum(1),
        "sinh_squared": (np.sinh(np.pi * np.abs(m - 0.5)) ** 2).sum(1),
    }
    for kind in PENALTIES:
        np.testing.assert_allclose(penalty(masks_of(SHARES), kind, target).numpy(), expected[kind], rtol=1e-10)


def test_the_mean_activation_and_not_the_pixels_is_penalised():
    hard = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    hard[0, 0, 0], hard[0, 1, 1] = 1, 1
    for kind in PENALTIES:
        torch.testing.assert_close(penalty(hard, kind), penalty(masks_of([[0.5, 0.5]]), kind))


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_with_a_softmax_over_n_the_optimum_is_one_nth(kind, count):
    logits = torch.zeros(1, count, dtype=torch.float64, requires_grad=True)
    least = penalty(logits.softmax(1)[:, :, None, None], kind)
    (slope,) = torch.autograd.grad(least.sum(), logits)
    assert float(slope.abs().max()) < 1e-9
    others = torch.distributions.Dirichlet(torch.full((count,), 2.0, dtype=torch.float64)).sample((2000,))
    assert float(penalty(others[:, :, None, None], kind).min()) >= float(least.detach()) - 1e-12


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_one_mask_alone_rests_at_the_target_and_the_poles_stay(kind, target):
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)
    found = penalty(shares[:, None, None, None], kind, target)
    assert float(shares[int(found.argmin())]) == pytest.approx(target, abs=1e-3)
    assert int(found.argmax()) in (0, 1000) and float(found[[0, 1000]].min()) > float(found[1:-1].min())
    if kind == "inverse_sin":
        assert float(found[[0, 1000]].min()) > 1e6


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_are_float32_under_autocast_and_finite_at_a_dead_mask(kind):
    masks = masks_of([[0.01, 0.99], [0.0, 1.0]]).float().requires_grad_()
    exact = penalty(masks, kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty(masks, kind)
    assert found.dtype == torch.float32 and torch.equal(found, exact)
    assert penalty(masks.to(torch.bfloat16), kind).dtype == torch.float32
    (slope,) = torch.autograd.grad(penalty(masks, kind, 0.3).sum(), masks)
    assert bool(slope.isfinite().all())


def test_statistics_tell_hard_masks_from_a_grey_veil():
    hard = torch.zeros(2, 3, 2, 3)
    for n in range(3):
        hard[:, n, :, n] = 1
    found = {name: float(value) for name, value in mask_statistics(hard).items()}
    third = pytest.approx(1 / 3)
    assert [found[f"mask_mean/{n}"] for n in range(3)] == [third] * 3
    assert found["mask_spread"] == pytest.approx(math.sqrt(2) / 3)
    assert found["mask_entropy"] == pytest.approx(0, abs=1e-6) and found["mask_overlap"] == 0
    veil = {name: float(value) for name, value in mask_statistics(torch.full((2, 3, 2, 3), 1 / 3)).items()}
    assert veil["mask_spread"] == pytest.approx(0, abs=1e-6) and veil["mask_entropy"] == pytest.approx(1)
    assert veil["mask_overlap"] == pytest.approx((1 / 9) / (5 / 9))
