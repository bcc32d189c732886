"""Sin-cos tables, resampled tables and rotations against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pathray.nn.positions import (
    Rotary,
    grid_coordinates,
    resample_positions,
    rotate,
    sincos,
    sincos_2d,
    sincos_3d,
    sincos_table,
)
from tests.builders.plain_vit import plain_cubic, plain_rotate


def test_sincos_2d_is_the_closed_form_rows_first():
    table, dim = sincos_2d(3, 5, 16), 16
    assert table.shape == (15, dim) and table.dtype == torch.float32
    for row in range(3):
        for column in range(5):
            for i in range(4):
                omega = 10000 ** (-2 * i / 8)
                got = table[row * 5 + column]
                assert got[i] == pytest.approx(math.sin(row * omega), abs=1e-6)
                assert got[4 + i] == pytest.approx(math.cos(row * omega), abs=1e-6)
                assert got[8 + i] == pytest.approx(math.sin(column * omega), abs=1e-6)
                assert got[12 + i] == pytest.approx(math.cos(column * omega), abs=1e-6)


@pytest.mark.parametrize("dim", [24, 192, 1024])
def test_sincos_3d_shares_the_dimensions_and_tells_all_places_apart(dim):
    table = sincos_3d(4, 3, 5, dim)
    share = 2 * (dim // 6)
    depth, row, column = (table[:, a * share : (a + 1) * share].reshape(4, 3, 5, share) for a in range(3))
    assert torch.equal(depth, depth[:, :1, :1].expand_as(depth))
    assert torch.equal(row, row[:1, :, :1].expand_as(row))
    assert torch.equal(column, column[:1, :1].expand_as(column))
    assert depth[2, 0, 0, 0] == pytest.approx(math.sin(2)) and column[0, 0, 4, share // 2] == pytest.approx(math.cos(4))
    assert not table[:, 3 * share :].any()
    assert torch.unique(table, dim=0).shape[0] == 60


def test_another_grid_is_stretched_onto_the_native_one_centre_on_centre():
    np.testing.assert_allclose(grid_coordinates((2, 4), (4, 4))[:, 0], [0.5] * 4 + [2.5] * 4)
    np.testing.assert_allclose(grid_coordinates((2, 4), (4, 4))[:4, 1], [0, 1, 2, 3])
    fine = grid_coordinates((8,), (4,))[:, 0]
    np.testing.assert_allclose(fine.reshape(4, 2).mean(1), [0, 1, 2, 3])
    np.testing.assert_array_equal(grid_coordinates((3, 7))[:, 1], np.tile(np.arange(7.0), 3))


def test_a_resampled_table_agrees_with_the_stretched_coordinates():
    """A table linear in the coordinates: torch's bicubic kernel is .05 off a line, half a token would be .5 off."""
    native = grid_coordinates((12, 16))
    table = torch.from_numpy(native @ np.array([[1.0, 0.5], [0.0, -2.0]])).float()
    new = resample_positions(table, (12, 16), (24, 8)).reshape(24, 8, 2)
    expected = (grid_coordinates((24, 8), (12, 16)) @ np.array([[1.0, 0.5], [0.0, -2.0]])).reshape(24, 8, 2)
    np.testing.assert_allclose(new[4:-4, 2:-2].numpy(), expected[4:-4, 2:-2], atol=0.06)
    assert resample_positions(table, (12, 16), (12, 16)) is table


@pytest.mark.parametrize(("old", "new"), [((4, 6), (9, 5)), ((5, 3), (5, 8)), ((2, 3, 4), (4, 2, 7))])
def test_resampling_is_torchs_cubic_interpolation_without_its_kernels(old, new):
    table = torch.randn(int(np.prod(old)), 5)
    field = table.double().T.reshape(1, 5, *old)
    expected = plain_cubic(field, new).reshape(5, -1).T
    torch.testing.assert_close(resample_positions(table, old, new).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_resampled_table_of_a_volume_keeps_constants_and_gradients():
    table = torch.full((2 * 3 * 4, 5), 0.7, requires_grad=True)
    out = resample_positions(table, (2, 3, 4), (4, 2, 7))
    assert out.shape == (56, 5)
    torch.testing.assert_close(out, torch.full((56, 5), 0.7))
    out.sum().backward()
    assert float(table.grad.sum()) == pytest.approx(56 * 5, rel=1e-5)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
def test_rotation_is_multiplication_by_complex_numbers(grid):
    n, dh = int(np.prod(grid)), 16
    x = torch.randn(2, n, 3, dh)
    out = rotate(x, Rotary(dh, len(grid), theta=100.0).angles(grid))
    expected = plain_rotate(x.double(), torch.from_numpy(grid_coordinates(grid)), 100.0, 0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_rotated_products_depend_on_the_displacement_only():
    angles = Rotary(24, 3).angles((5, 5, 5))
    q, k = torch.randn(24), torch.randn(24)
    turned = [rotate(t.expand(1, 125, 1, 24), angles).reshape(5, 5, 5, 24) for t in (q, k)]

    def product(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return float(turned[0][a] @ turned[1][b])

    assert product((0, 1, 2), (3, 1, 0)) == pytest.approx(product((1, 3, 4), (4, 3, 2)), abs=1e-5)
    assert product((0, 1, 2), (3, 1, 0)) != pytest.approx(product((0, 1, 2), (2, 1, 0)), abs=1e-3)
    assert product((2, 2, 2), (2, 2, 2)) == pytest.approx(float(q @ k), abs=1e-4)


def test_tables_are_cached_per_grid_and_survive_inference_mode():
    with torch.inference_mode():
        table = sincos_table((3, 9), 8, (6, 6))
        angles = Rotary(16, 2).angles((3, 9))
    assert sincos_table((3, 9), 8, (6, 6)) is table and not table.is_inference() and not angles.is_inference()
    np.testing.assert_allclose(table.numpy(), sincos(grid_coordinates((3, 9), (6, 6)), 8), atol=1e-6)


def test_a_learned_table_is_resampled_in_float32_under_autocast():
    table = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    exact = resample_positions(table, (4, 4), (3, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_positions(table, (4, 4), (3, 6)), exact)
