"""Panels: proportions and scale bars are the volume's own, measured on the pixels that are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from oct.pictures.panels import THINNEST, draw_plane, fit_plane
from oct.pictures.views import Plane
from pathray.draw.canvas import INK, Canvas

GREYS = np.random.default_rng(0).random((40, 120), np.float32)


def plane(size_mm, greys=GREYS) -> Plane:
    return Plane(greys, np.ones(greys.shape, bool), size_mm, ("depth", "along the B-scan"))


@pytest.mark.parametrize("size_mm", [(2.0, 6.0), (7.68, 7.68), (6.0, 2.0)])
def test_a_panel_has_the_proportions_of_millimetres_and_not_of_pixels(size_mm):
    fit = fit_plane(plane(size_mm), 300, 200)
    assert fit.height / fit.width == pytest.approx(size_mm[0] / size_mm[1]) and fit.note == ""
    assert fit.width <= 300 and fit.height <= 200 and (fit.width == 300 or fit.height == 200)
    assert fit.units_per_mm == pytest.approx(fit.width / size_mm[1])


def test_a_plane_that_would_be_too_thin_is_enlarged_and_says_so():
    fit = fit_plane(plane((0.1, 6.0)), 300, 200)
    assert fit.height == THINNEST and fit.note == f"depth enlarged ×{THINNEST / 5:.2g}"
    upright = fit_plane(plane((6.0, 0.1)), 300, 200)
    assert upright.width == THINNEST and upright.units_per_mm is None and "along the B-scan enlarged" in upright.note


def test_axes_without_a_spacing_have_no_scale():
    assert fit_plane(plane((None, None)), 240, 200).units_per_mm is None
    assert fit_plane(plane((None, None)), 240, 200).height == pytest.approx(80), "pixels are square"
    across = fit_plane(plane((None, 6.0)), 240, 200)
    assert across.units_per_mm == pytest.approx(40) and across.note.startswith("depth: no spacing known")
    assert fit_plane(plane((6.0, None)), 240, 200).units_per_mm is None


def test_the_scale_bar_is_as_long_as_it_says():
    """6 mm over 300 units are 50 a millimetre; 0.45 · 300 units allow a bar of 2 mm, which is 100."""
    canvas = Canvas(340, 200, 1.0)
    draw_plane(canvas, plane((2.0, 6.0), np.zeros((40, 120), np.float32)), 10, 10, 300, 180, title="")
    picture = canvas.to_picture()
    ink = np.array([int(INK[i : i + 2], 16) for i in (1, 3, 5)])
    is_ink = (np.abs(picture.astype(int) - ink) < 8).all(axis=2)
    below = 10 + 20 + 100
    assert is_ink[below + 9].sum() >= 100 and is_ink[below + 9, 10:110].all() and not is_ink[below + 9, 110:114].any()
