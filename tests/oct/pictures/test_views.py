"""Planes of volumes against plain NumPy: which voxels they hold, how large they are in mm, which way is down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oct.pictures.views import Plane, chosen_slices, grid_views, stored_views
from oct.volume import Geometry, VolumeHeader


def header(shape, spacing=(0.5, 0.01, 0.02), sources=("positions", "shared_measures", "shared_measures"), offsets=None):
    geometry = Geometry(spacing, sources, tuple(range(shape[0])), offsets)
    return VolumeHeader("", "", "", *shape, 8, False, "", "", "R", geometry)


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 255, (6, 10, 8), np.uint8)


def test_slices_are_spread_evenly_and_each_once():
    assert chosen_slices(0, 128) == (21, 64, 106)
    assert chosen_slices(5, 6) == (5,) and chosen_slices(5, 7) == (5, 6)


def test_stored_planes_are_the_files_pixels_with_depth_downwards(frames):
    views = stored_views(iter(frames), header(frames.shape))
    assert views.numbers == (1, 3, 5) and views.slices == 6
    for plane, number in zip(views.b_scans, views.numbers, strict=True):
        assert np.array_equal(plane.greys, frames[number]) and plane.axes == ("depth", "along the B-scan")
    assert np.allclose(views.en_face.greys, frames.astype(float).mean(axis=1))
    assert np.array_equal(views.section.greys, frames[:, :, 4].T)
    assert views.b_scans[0].size_mm == pytest.approx((0.1, 0.16))
    assert views.en_face.size_mm == pytest.approx((3.0, 0.16)) and views.section.size_mm == pytest.approx((0.1, 3.0))


def test_frames_at_irregular_gaps_are_drawn_at_their_true_places(frames):
    """Frames at 0, 1, 2 and 6 mm cover -0.5 … 0.5 … 1.5 … 4 … 8; the middles of four even steps are at 0.56, 2.69, 4.81
    and 6.94 mm, in frames 1, 2, 3 and 3."""
    views = stored_views(iter(frames[:4]), header((4, 10, 8), offsets=(0.0, 1.0, 2.0, 6.0)))
    assert np.allclose(views.en_face.greys, frames[[1, 2, 3, 3]].astype(float).mean(axis=1))
    assert views.section.size_mm[1] == pytest.approx(8.5)
    assert views.numbers == (0, 2, 3), "B-scans are frames of the file"


def test_an_assumed_axis_has_no_size(frames):
    sources = ("positions", "assumed", "assumed")
    views = stored_views(iter(frames), header(frames.shape, (0.5, 1.0, 1.0), sources))
    assert views.b_scans[0].size_mm == (None, None)
    assert views.en_face.size_mm == (3.0, None) and views.section.size_mm == (None, 3.0)


def test_planes_of_a_grid_know_where_image_is():
    image = np.arange(8 * 4 * 6, dtype=np.float32).reshape(8, 4, 6)
    inside = np.zeros(image.shape, bool)
    inside[2:5, 1:3, :4] = True
    views = grid_views(image, inside, (0.1, math.nan, 0.2))
    assert views.numbers == (2, 3, 4), "slices without image are not worth a picture"
    assert views.b_scans[0].size_mm == (None, pytest.approx(1.2))
    assert views.en_face.inside.sum() == 3 * 4
    assert views.en_face.greys[3, 2] == image[3, 1:3, 2].mean(), "the mean over the image's depth alone"
    assert np.array_equal(views.section.greys, image[:, :, 3].T), "depth downwards"
    assert np.array_equal(views.b_scans[0].greys, image[2]) and np.array_equal(views.section.inside, inside[:, :, 3].T)
    cropped = views.b_scans[1].crop()
    assert np.array_equal(cropped.greys, image[3, 1:3, :4]) and cropped.size_mm == (None, pytest.approx(0.8))


def test_pixels_are_stretched_over_the_image_and_other_places_have_one_colour():
    greys = np.linspace(100, 300, 1000, dtype=np.float32).reshape(10, 100)
    inside = np.ones(greys.shape, bool)
    inside[:, :10] = False
    greys[~inside] = -1e6
    pixels = Plane(greys, inside, (1.0, 1.0), ("depth", "x")).to_pixels((1, 2, 3))
    assert (pixels[~inside] == (1, 2, 3)).all()
    shown = pixels[inside][:, 0]
    assert shown.min() == 0 and shown.max() == 255 and (np.diff(shown.astype(int)) >= 0).all()
    assert 0.4 < (shown < 128).mean() < 0.6, "what is no image does not darken the rest"
