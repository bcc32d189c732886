"""Pixels on the device: exact normalisation, augmentation by the units' own draws, controls that do what they say."""

import numpy as np
import pytest
import torch

from ijepath.augment import (
    STAINS,
    Pixels,
    blur,
    density,
    jitter_stain,
    normalise_brightness,
    normalise_frequency,
    simulate_scanner,
)
from ijepath.config import AugmentConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def tissue(n=2, size=48, seed=0):
    """H&E-like: densities of two stains, smooth with fine detail, some background."""
    g = torch.Generator().manual_seed(seed)
    amounts = torch.rand(n, 2, size, size, generator=g)
    amounts = 0.3 * blur(amounts, 1) + 2 * blur(amounts, 3)  # two octaves of detail, mean density about 0.8
    amounts *= 0.35
    amounts[:, :, :8] = 0
    od = torch.einsum("nshw,sc->nchw", amounts, torch.tensor(STAINS[:2]))
    return torch.exp(-od)


def as_uint8(x):
    return (x * 255).round().to(torch.uint8).movedim(1, -1)


def pixels(**options):
    return Pixels(AugmentConfig(**options), MEAN, STD)


def test_without_options_pixels_are_only_normalised():
    context = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    targets = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    a, b = pixels()(context, targets, torch.rand(2, 2, 16))
    expected = (context.numpy().astype(np.float64) / 255 - MEAN) / STD
    assert np.allclose(a.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    expected = (targets.numpy().astype(np.float64) / 255 - MEAN) / STD
    assert b.shape == (6, 3, 16, 16) and np.allclose(b[4].numpy(), expected[1, 1].transpose(2, 0, 1), atol=1e-6)


def test_normalisation_is_float32_under_autocast():
    context, targets = as_uint8(tissue()), as_uint8(tissue(4)).unflatten(0, (2, 2))
    draws = torch.rand(2, 2, 16)
    plain = pixels(stain=0.2, normalise_frequency=0.5)(context, targets, draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pixels(stain=0.2, normalise_frequency=0.5)(context, targets, draws)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


@pytest.mark.parametrize("options", [{"stain": 0.3}, {"scanner": 1.0}, {"stain": 0.2, "normalise_brightness": True}])
def test_a_unit_looks_the_same_whatever_its_batch_mates(options):
    context, targets = as_uint8(tissue(3)), as_uint8(tissue(6, seed=1)).unflatten(0, (3, 2))
    draws = torch.rand(3, 2, 16)
    together = pixels(**options)(context, targets, draws)
    alone = pixels(**options)(context[1:2], targets[1:2], draws[1:2])
    assert torch.allclose(together[0][1], alone[0][0], atol=1e-6)
    assert torch.allclose(together[1][2:4], alone[1], atol=1e-6)


def test_targets_share_the_contexts_draw_only_when_not_independent():
    same = as_uint8(tissue(1))
    draws = torch.rand(1, 2, 16)
    context, targets = pixels(stain=0.3, independent=False)(same, same[:, None], draws)
    assert torch.equal(context, targets)
    context, targets = pixels(stain=0.3)(same, same[:, None], draws)
    assert (context - targets).abs().max() > 0.05


def test_stain_jitter_equals_the_formula_in_float64():
    x, u = tissue(2), torch.rand(2, 6)
    m = np.array(STAINS)
    m /= np.linalg.norm(m, axis=1, keepdims=True)
    amounts = np.einsum("nchw,cs->nshw", -np.log(x.double().numpy()), np.linalg.inv(m))
    v = (2 * u.double().numpy() - 1)[:, :, None, None] * 0.2
    expected = np.exp(-np.einsum("nshw,sc->nchw", amounts * (1 + v[:, :3]) + v[:, 3:] / 4, m)).clip(0, 1)
    assert np.abs(jitter_stain(x, u, 0.2).numpy() - expected).max() < 1e-5


def test_the_middle_draw_changes_nothing():
    x = tissue(1).clamp(2 / 255, 1)
    middle = torch.full((1, 6), 0.5)
    assert torch.allclose(jitter_stain(x, middle, 0.3), x, atol=1e-5)
    assert torch.allclose(simulate_scanner(x, middle[:, :5], 1.0), x, atol=1e-5)


def test_brightness_normalisation_undoes_a_darker_stain_and_leaves_background_white():
    x = tissue(1)
    darker = torch.exp(-density(x) * 1.4)
    a, b = normalise_brightness(x, 0.7), normalise_brightness(darker, 0.7)
    assert (x - darker).abs().mean() > 4 * (a - b).abs().mean()
    assert torch.equal(b[:, :, :8], torch.ones_like(b[:, :, :8]))
    blank = torch.ones(1, 3, 16, 16)
    assert torch.equal(normalise_brightness(blank, 0.7), blank)


def test_frequency_normalisation_brings_a_blurred_and_a_sharp_image_together():
    sharp = tissue(1, size=96)
    soft = (sharp + blur(sharp, 1)) / 2
    before = (sharp - soft).abs().mean()
    after = (normalise_frequency(sharp, 1.0) - normalise_frequency(soft, 1.0)).abs().mean()
    assert after < 0.7 * before
    assert torch.allclose(normalise_frequency(sharp, 1e-9), sharp.clamp(0, 1), atol=1e-5)


def test_blur_equals_a_library_convolution():
    from scipy.ndimage import convolve1d

    x = torch.rand(1, 2, 20, 24)
    kernel = np.zeros(9)
    kernel[::2] = np.array([1, 4, 6, 4, 1]) / 16
    expected = convolve1d(convolve1d(x.double().numpy(), kernel, axis=2, mode="mirror"), kernel, axis=3, mode="mirror")
    assert np.abs(blur(x, 2).numpy() - expected).max() < 1e-6
