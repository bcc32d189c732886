"""Views and crops: exact turns, the interpolation of SciPy, boxes in the image, and each image by its own draws."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from adios.augment import OF_CROP, OF_VIEW, count_draws, crop_place, crops, resample, view, view_place
from adios.config import CropConfig, ViewConfig
from tests.builders.runs.adios_run import batch, config

PLAIN = ViewConfig(scale=[1.0, 1.0], stain=0.0, scanner=0.0)
CORNERS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float64)


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_whole_view_is_exactly_one_of_the_eight_flips_and_quarter_turns():
    image = uniforms(1, 3, 12, 12)
    eight = [torch.rot90(x, k, (2, 3)) for x in (image, image.flip(3)) for k in range(4)]
    seen = set()
    for flip in (0.1, 0.9):
        for turn in (0.1, 0.4, 0.6, 0.9):
            draws = torch.full((1, OF_VIEW), 0.5)
            draws[0, 0], draws[0, 1] = flip, turn
            found = view(image, draws, PLAIN)
            (same,) = [i for i, other in enumerate(eight) if torch.allclose(found, other, atol=1e-5)]
            seen.add(same)
    assert seen == set(range(8))


def test_without_geometry_and_strengths_a_view_is_the_image():
    image, plain = uniforms(2, 3, 8, 8), ViewConfig(scale=[1.0, 1.0], geometry=False, stain=0.0, scanner=0.0)
    torch.testing.assert_close(view(image, uniforms(2, OF_VIEW), plain), image, atol=1e-5, rtol=0)


def test_resampling_is_bilinear_with_mirrored_edges_as_scipy_has_it():
    image, theta = uniforms(2, 3, 16, 16), crop_place(uniforms(2, OF_CROP, seed=1), CropConfig(size=8))
    line = (np.arange(10) * 2 + 1) / 10 - 1
    x, y = np.meshgrid(line, line)
    for i in range(2):
        t = theta[i].double().numpy()
        columns, rows = ((t[k, 0] * x + t[k, 1] * y + t[k, 2] + 1) * 8 - 0.5 for k in (0, 1))
        for channel in range(3):
            pixels = image[i, channel].double().numpy()
            expected = map_coordinates(pixels, [rows, columns], order=1, mode="reflect")
            np.testing.assert_allclose(resample(image, theta, 10)[i, channel].numpy(), expected, atol=1e-5)


def test_resampling_is_what_torch_samples_on_a_grid_also_far_outside():
    image, theta = uniforms(3, 3, 9, 9), 6 * uniforms(3, 2, 3, seed=2) - 3
    grid = torch.nn.functional.affine_grid(theta, [3, 3, 14, 14], align_corners=False)
    options = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": False}
    expected = torch.nn.functional.grid_sample(image.double(), grid.double(), **options)
    torch.testing.assert_close(resample(image.double(), theta.double(), 14), expected, atol=1e-4, rtol=0)


def test_an_upright_whole_crop_is_the_image_made_smaller():
    image, upright = uniforms(1, 3, 32, 32), CropConfig(size=16, scale=[1.0, 1.0], rotation=0.0)
    found = crops(image, crop_place(uniforms(1, OF_CROP), upright), 16)
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(image, 2), atol=1e-5, rtol=0)


def test_crops_have_areas_in_the_range_every_angle_and_lie_inside_where_they_can():
    theta = crop_place(uniforms(4000, OF_CROP), CropConfig(scale=[0.4, 1.0])).double().numpy()
    linear, centre = theta[:, :, :2], theta[:, :, 2]
    areas = np.linalg.det(linear)
    assert 0.4 <= areas.min() < 0.41 and 0.99 < areas.max() <= 1.0 + 1e-6
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert angles.min() < -179 and angles.max() > 179 and abs(np.median(angles)) < 10
    corners = np.einsum("mij,cj->mci", linear, CORNERS) + centre[:, None]
    reach = np.abs(linear).sum(axis=2).max(axis=1)
    fits = reach <= 1
    assert 0.2 < fits.mean() < 0.9 and np.abs(corners[fits]).max() <= 1 + 1e-6
    assert np.abs(centre[~fits]).max() < 1e-6, "what does not fit lies in the middle"
    assert np.ptp(centre[fits]) > 0.5


def test_views_show_a_share_of_the_area_and_lie_inside():
    theta = view_place(uniforms(1000, 5), ViewConfig(scale=[0.3, 0.6])).double().numpy()
    areas = np.abs(np.linalg.det(theta[:, :, :2]))
    assert 0.3 <= areas.min() + 1e-6 and areas.max() <= 0.6 + 1e-6 and np.ptp(areas) > 0.25
    corners = np.einsum("mij,cj->mci", theta[:, :, :2], CORNERS) + theta[:, None, :, 2]
    assert np.abs(corners).max() <= 1 + 1e-6


def test_an_image_is_augmented_by_its_own_draws_whatever_its_batch_mates():
    images, draws = uniforms(4, 3, 16, 16), uniforms(4, OF_VIEW, seed=1)
    together = view(images, draws, ViewConfig())
    alone = torch.cat([view(images[i : i + 1], draws[i : i + 1], ViewConfig()) for i in (3, 2, 1, 0)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], view(images[:1], draws[1:2], ViewConfig())[0], atol=0.05)


def test_half_precision_does_not_move_a_crop():
    images, theta = uniforms(2, 3, 32, 32), crop_place(uniforms(2, OF_CROP), CropConfig())
    exact = crops(images, theta, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crops(images, theta, 16), exact)


@pytest.mark.parametrize(("masks", "each"), [(3, 1), (2, 4), (3, 0)])
def test_the_reader_is_asked_for_as_many_draws_as_there_are_views_and_crops(masks, each):
    run = config(num_masks=masks, crops_per_mask=each)
    assert count_draws(run) == 2 * OF_VIEW + masks * each * OF_CROP == batch(run, 0, 1)["draws"].shape[1]


def test_stain_and_scanner_change_colours_within_bounds():
    image, draws = uniforms(1, 3, 8, 8), uniforms(1, OF_VIEW, seed=5)
    for strengths in ({"stain": 0.2, "scanner": 0.0}, {"stain": 0.0, "scanner": 0.5}):
        found = view(image, draws, ViewConfig(scale=[1.0, 1.0], geometry=False, **strengths))
        assert 0 <= float(found.min()) and float(found.max()) <= 1 and float((found - image).abs().mean()) > 0.005
    assert math.isfinite(float(view(torch.zeros(1, 3, 8, 8), draws, ViewConfig()).sum()))
