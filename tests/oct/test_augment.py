"""Volumes as encoder inputs: normalised over the image before padding matters, moved and disturbed by draws alone."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from oct.augment import Volumes, box_mask, count_draws, mix, normal_noise, normalise, place, rotation
from oct.config import RunConfig
from oct.sections import AugmentConfig
from tests.builders.oct.volumes import micro, small_config

OFF = {"crop": [1, 1], "flip_lr": False, "flip_slow": False, "degrees": 0, "translate": 0, "scale": 0, "noise": 0}
SPACING = (0.05, 0.02, 0.02)


@pytest.fixture(scope="module")
def batch():
    return micro(small_config(), range(4))


def inputs(batch, **changes) -> torch.Tensor:
    volumes = Volumes(AugmentConfig(**(OFF | changes)), SPACING)
    return volumes(batch["image"], batch["inside"], batch["draws"])


def inside_of(batch, i: int) -> tuple[slice, ...]:
    return tuple(slice(first, last) for first, last in batch["inside"][i].tolist())


def with_draws(batch, **values) -> dict:
    """The batch with some of its draws replaced, by their number."""
    draws = torch.full_like(batch["draws"], 0.5)
    for number, value in values.items():
        draws[:, int(number[1:])] = value
    return {**batch, "draws": draws}


def test_volumes_are_normalised_over_image_voxels_alone_and_padding_is_exactly_0(batch):
    found = normalise(batch["image"], batch["inside"])
    for i, image in enumerate(batch["image"].double().numpy()):
        part = inside_of(batch, i)
        expected = np.zeros_like(image)
        expected[part] = (image[part] - image[part].mean()) / image[part].std()
        assert np.allclose(found[i].numpy(), expected, atol=1e-4)
        assert np.count_nonzero(found[i].numpy()[expected == 0]) == 0
        over_all = (image - image.mean()) / image.std()  # the trap: padding as part of the volume
        if image[part].size < image.size:
            assert np.abs(found[i].numpy() - over_all)[part].max() > 0.02


def test_a_mean_far_from_0_costs_no_precision():
    image = torch.full((1, 8, 32, 32), 32_000, dtype=torch.int16)
    image[0, :, ::2] += 2
    box = torch.tensor([[[0, 8], [0, 32], [0, 32]]], dtype=torch.int32)
    assert torch.allclose(normalise(image, box).abs(), torch.ones(1, 8, 32, 32), atol=0.02)


def test_a_volume_of_one_value_is_0_and_not_infinite():
    image = torch.full((2, 8, 32, 32), 12_345, dtype=torch.int16)
    box = torch.tensor([[[0, 8], [0, 32], [0, 32]], [[3, 3], [0, 32], [0, 32]]], dtype=torch.int32)  # one without image
    assert torch.equal(normalise(image, box), torch.zeros(2, 8, 32, 32))


def test_validation_only_normalises(batch):
    volumes = Volumes(AugmentConfig(), SPACING)
    plain = volumes(batch["image"], batch["inside"])
    assert plain.shape == (4, 1, 8, 32, 32)
    assert torch.equal(plain[:, 0], normalise(batch["image"], batch["inside"]))
    assert not torch.allclose(volumes(batch["image"], batch["inside"], batch["draws"]), plain, atol=0.1)


def test_depth_is_never_flipped_and_both_other_axes_are(batch):
    """A ramp along each axis, under a thousand draws: the sign of its slope afterwards."""
    config = AugmentConfig(noise=0)
    draws = torch.rand(200, count_draws(RunConfig()), generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0, 8], [0, 32], [0, 32]], dtype=torch.int32).expand(200, 3, 2)
    signs = []
    for axis in range(3):
        at = torch.arange((8, 32, 32)[axis], dtype=torch.int16) * 100
        ramp = at.view([-1 if a == axis else 1 for a in range(3)]).expand(200, 8, 32, 32)
        out = Volumes(config, SPACING)(ramp, box, draws)[:, 0]
        middle = out.narrow(1 + axis, (4, 16, 16)[axis] - 1, 2)[:, 2:6] if axis else out[:, 3:5]
        middle = middle[..., 8:24] if axis == 1 else middle
        slope = middle.select(1 + axis, 1) - middle.select(1 + axis, 0)
        signs.append((slope.flatten(1).mean(1) > 0).float().mean())
    assert signs[1] == 1.0 and 0.3 < signs[0] < 0.7 and 0.3 < signs[2] < 0.7


def test_flips_are_those_of_the_draws(batch):
    plain = inputs(batch)
    out = inputs(with_draws(batch, d0=0.2, d1=0.9), flip_slow=True, flip_lr=True)
    other = inputs(with_draws(batch, d0=0.9, d1=0.2), flip_slow=True, flip_lr=True)
    for i in range(4):
        part = inside_of(batch, i)
        assert torch.equal(out[i, 0][part], plain[i, 0][part].flip(0))
        assert torch.equal(other[i, 0][part], plain[i, 0][part].flip(2))


def test_padding_stays_exactly_0_whatever_is_drawn(batch):
    out = Volumes(AugmentConfig(), SPACING)(batch["image"], batch["inside"], batch["draws"])[:, 0]
    a, b = place(batch["draws"], batch["inside"], SPACING, AugmentConfig())
    index = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (8, 32, 32)), indexing="ij"), -1)
    some = 0
    for i in range(4):
        q = index @ a[i].T + b[i]
        low, high = batch["inside"][i].float().T
        outside = ((q < low - 0.51) | (q > high - 0.49)).any(-1)
        some += int(outside.sum())
        assert torch.count_nonzero(out[i][outside]) == 0
        assert torch.count_nonzero(out[i][~outside]) > 0.9 * (~outside).sum()
    assert some > 1000


def test_the_share_of_a_crop_fills_the_grid(batch):
    """Kept half of each axis, not shifted: voxel p shows the old voxel c + (p - c) / 2, with c the image's centre."""
    a, b = place(with_draws(batch)["draws"], batch["inside"], SPACING, AugmentConfig(**(OFF | {"crop": [0.5, 0.5]})))
    centre = (batch["inside"].double().sum(2) - 1) / 2
    assert torch.allclose(a, torch.eye(3).expand(4, 3, 3) / 2)
    assert torch.allclose(b.double(), centre / 2)
    shifted = place(with_draws(batch, d3=0, d4=0, d5=0)["draws"], batch["inside"], SPACING, AugmentConfig())
    edge = batch["inside"][..., 0] - 0.5  # at the far end, a crop's edge is the image's
    assert torch.allclose((shifted[0] @ edge[..., None])[..., 0] + shifted[1], edge, atol=1e-5)


def test_rotations_are_in_millimetres():
    """About the x axis (in the z, y plane): a step of 1 voxel in z is .05 mm, in y .02 mm."""
    config = AugmentConfig(**(OFF | {"degrees": 10}))
    draws = torch.full((1, 17), 0.5)
    draws[0, 8] = 1.0
    box = torch.tensor([[[0, 8], [0, 32], [0, 32]]], dtype=torch.int32)
    a, _ = place(draws, box, SPACING, config)
    angle = math.radians(10)
    expected = [[math.cos(angle), -math.sin(angle) * 0.4, 0], [math.sin(angle) * 2.5, math.cos(angle), 0], [0, 0, 1]]
    assert np.allclose(a[0].numpy(), expected, atol=1e-6)
    turns = rotation(torch.randn(5, 3))
    assert torch.allclose(turns @ turns.mT, torch.eye(3).expand(5, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(5), atol=1e-6)


def test_noise_comes_after_normalisation_and_inside_alone(batch):
    plain, noisy = inputs(batch), inputs(batch, noise=0.05)
    for i in range(4):
        noise, part = (noisy - plain)[i, 0], inside_of(batch, i)
        assert float(noise[part].std()) == pytest.approx(0.05, rel=0.05)
        assert torch.count_nonzero(noise) == torch.count_nonzero(noise[part])


def test_noise_is_standard_normal_independent_and_new_for_other_draws():
    draws = torch.tensor([[0.1, 0.2], [0.1, 0.2 + 1e-4], [0.1 + 1e-4, 0.2]])
    noise = normal_noise(draws, (5, 41, 101)).flatten(1).double().numpy()
    for row in noise:
        assert kstest(row, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.03
        half = len(row) // 2
        assert abs(np.corrcoef(row[:half] ** 2, row[half : 2 * half] ** 2)[0, 1]) < 0.03
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.03


def test_the_hash_is_that_of_murmur3_over_unsigned_words():
    words = np.array([0, 1, 2**31, 2**32 - 1, 123_456_789, 3_000_000_000], np.uint64)
    x = words.copy()
    x = (x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B) % np.uint64(2**32)
    x = (x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35) % np.uint64(2**32)
    x ^= x >> np.uint64(16)
    found = mix(torch.from_numpy(words.astype(np.uint32).view(np.int32)))
    assert np.array_equal(found.numpy().view(np.uint32), x.astype(np.uint32))


def test_a_volume_is_the_same_in_any_batch_and_whatever_torchs_generator_holds(batch):
    volumes = Volumes(AugmentConfig(), SPACING)
    whole = volumes(batch["image"], batch["inside"], batch["draws"])
    torch.manual_seed(99)
    torch.rand(3)
    for i in range(4):
        one = slice(i, i + 1)
        assert torch.equal(volumes(batch["image"][one], batch["inside"][one], batch["draws"][one]), whole[one])


def test_the_mask_of_a_box_is_1_inside():
    mask = box_mask(torch.tensor([[[1, 2], [0, 3], [2, 4]]]), (3, 3, 5))
    expected = np.zeros((1, 3, 3, 5))
    expected[0, 1:2, 0:3, 2:4] = 1
    assert np.array_equal(mask.numpy(), expected)
