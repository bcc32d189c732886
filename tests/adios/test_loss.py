"""The contrast and the penalties against float64 NumPy, their optima, and what half precision may not touch."""

import math

import numpy as np
import pytest
import torch

from adios.loss import PENALTIES, contrast, mask_statistics, penalty
from tests.builders.contrast import by_hand


def unit_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


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


@pytest.mark.parametrize(("count", "tau"), [(2, 0.2), (4, 0.05), (9, 0.7)])
def test_the_contrast_is_least_where_views_agree_and_images_are_a_simplex(count, tau):
    centred = torch.eye(count, dtype=torch.float64) - 1 / count
    simplex = torch.nn.functional.normalize(centred, dim=1)  # x_i · x_j = −1 / (G − 1)
    others = 2 * (count - 1) * math.exp(-1 / (tau * (count - 1)))
    least = -1 / tau + math.log(math.exp(1 / tau) + others)
    a, b = simplex.clone().requires_grad_(), simplex[None].clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64)
    found = contrast(a, b, a, b, temperature)
    np.testing.assert_allclose(found.detach().numpy(), np.full((1, count), least), rtol=1e-10, atol=1e-15 / tau)
    for x, slope in zip((a, b), torch.autograd.grad(found.sum(), (a, b)), strict=True):
        along = slope - (slope * x).sum(dim=-1, keepdim=True) * x  # what moves x on the sphere
        assert float(along.detach().abs().max()) < 1e-12
    for seed in range(20):
        moved = simplex + 0.1 * unit_vectors(2, count, count, seed=seed)
        x, y = torch.nn.functional.normalize(moved, dim=-1)
        assert float(contrast(x, y[None], x, y[None], temperature).mean()) > least


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


@pytest.mark.parametrize("target", [None, 0.3])
def test_a_mask_that_is_everywhere_is_penalised_also_where_rounding_takes_its_share_beyond_1(target):
    whole = torch.tensor([1.0, 1.0000001]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert whole.mean(dim=(1, 2, 3)).tolist() == [1.0, float(np.nextafter(np.float32(1), np.float32(2)))]
    nearly = penalty(torch.full((1, 1, 4, 4), 0.999), "inverse_sin", target)
    assert bool((penalty(whole, "inverse_sin", target) > 1e6 * nearly).all())
    steep, flat = (penalty(x, "sinh_squared", target) for x in (whole, torch.full((1, 1, 4, 4), 0.999)))
    assert bool((steep > flat).all())


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_not_rounded_by_autocast(dtype):
    masks = (4 * torch.randn(1, 3, 512, 512)).softmax(dim=1)  # a mask's sum over the pixels is beyond float16
    exact = mask_statistics(masks)
    with torch.autocast("cpu", dtype):
        found = mask_statistics(masks)
    m = masks.double().flatten(2)[0].numpy()
    pairs = [(m[i] * m[j]).sum() / (m[i] + m[j] - m[i] * m[j]).sum() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert float(found["mask_overlap"]) == pytest.approx(np.mean(pairs), rel=1e-4)
    assert all(torch.equal(found[name], value) for name, value in exact.items())


def test_masks_that_are_nowhere_overlap_with_nothing():
    for shares in ([[1.0, 0.0]], [[1.0, 0.0, 0.0]]):
        found = {name: float(value) for name, value in mask_statistics(masks_of(shares)).items()}
        assert found["mask_overlap"] == 0 and all(math.isfinite(value) for value in found.values())
