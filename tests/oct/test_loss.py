"""The losses against float64 NumPy, and the distances against SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from oct.loss import dense, dense_weights, l1, normalized_mse, squared_distance


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, 16, generator=g), torch.randn(3, 7, 16, generator=g)


def test_normalized_mse_is_the_squared_distance_of_unit_vectors(pair):
    z, h = (x.double().numpy() for x in pair)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, h)]
    assert np.allclose(normalized_mse(*pair).numpy(), ((unit[0] - unit[1]) ** 2).sum(-1).mean(-1), rtol=1e-5)
    assert torch.allclose(normalized_mse(pair[0], 3 * pair[0]), torch.zeros(3), atol=1e-6)
    assert torch.allclose(normalized_mse(pair[0], -pair[0]), torch.full((3,), 4.0))


def test_l1_is_the_mean_over_tokens_and_dimensions(pair):
    z, h = (x.double().numpy() for x in pair)
    assert np.allclose(l1(*pair).numpy(), np.abs(z - h).mean((1, 2)), rtol=1e-5)


def test_distances_to_the_nearest_hidden_token_are_those_of_scipy():
    grid, g = (4, 6, 5), np.random.default_rng(1)
    hidden = np.stack([g.permutation(120)[:9] for _ in range(3)])
    found = squared_distance(torch.from_numpy(hidden), grid).numpy()
    for row, tokens in zip(found, hidden, strict=True):
        free = np.ones(120, bool)
        free[tokens] = False
        assert np.allclose(row, distance_transform_edt(free.reshape(grid)).ravel() ** 2, rtol=1e-6)


def test_dense_adds_visible_tokens_that_weigh_less_far_from_hidden_ones(pair):
    """Grid 1 x 1 x 7, tokens 2 and 6 hidden: by hand, distances of 0, 1, 3, 4, 5 are 2, 1, 1, 2, 1."""
    context, target = torch.tensor([[0, 1, 3, 4, 5]]), torch.tensor([[2, 6]])
    weights = dense_weights(context, target, (1, 1, 7), 0.5)
    near, far = 0.5 / 5, 0.5 / np.sqrt(2) / 5
    assert weights.numpy() == pytest.approx(np.array([[far, near, near, far, near, 0.5, 0.5]]))
    z, h = (x[:1].double().numpy()[0] for x in pair)
    error = np.abs(z - h).mean(-1)
    expected = error[5:].mean() + (0.5 / np.sqrt([2, 1, 1, 2, 1]) * error[:5]).mean()
    assert float(dense(pair[0][:1], pair[1][:1], weights)) == pytest.approx(expected, rel=1e-5)


def test_losses_are_in_float32_under_autocast(pair):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [x.to(torch.bfloat16) for x in pair]
        assert normalized_mse(*low).dtype == l1(*low).dtype == torch.float32
        assert l1(*low).numpy() == pytest.approx(l1(*(x.float() for x in low)).numpy(), rel=1e-6)
