"""The canvas: units and scale, smooth lines, scale bars whose length is the length they name."""

from __future__ import annotations

import numpy as np
import pytest

from pathray.draw.canvas import INK, Canvas, blend, length_label, round_length


def dark(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture.astype(int) - blend(INK, INK, 0)).max(-1) < 30


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_size_is_units_times_scale(scale: float) -> None:
    assert Canvas(120, 80, scale).to_picture().shape == (round(80 * scale), round(120 * scale), 3)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_scale_bar_is_as_long_as_it_says(scale: float) -> None:
    canvas = Canvas(300, 100, scale)
    canvas.scale_bar(10, 90, um_per_unit=0.8, longest=150)
    runs = [
        max(np.diff(np.flatnonzero(np.diff(np.r_[0, line, 0])))[::2], default=0) for line in dark(canvas.to_picture())
    ]
    assert round_length(150 * 0.8) == 100
    assert max(runs) == pytest.approx(100 / 0.8 * scale, abs=1)


@pytest.mark.parametrize(("longest", "length", "label"), [(130, 100, "100 µm"), (2.5, 2, "2 µm"), (5400, 5000, "5 mm")])
def test_round_lengths(longest: float, length: float, label: str) -> None:
    assert round_length(longest) == length and length_label(length) == label


def test_a_picture_fills_its_box_and_nothing_else() -> None:
    canvas = Canvas(60, 60)
    canvas.picture(np.full((7, 9, 3), 40, np.uint8), 10, 20, 30, 25)
    shown = (canvas.to_picture() == 40).all(-1)
    rows, columns = np.nonzero(shown)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 44, 10, 39) and shown.sum() == 750


def test_a_paragraph_keeps_its_width_and_tells_where_it_ends() -> None:
    canvas = Canvas(200, 200)
    text = "tokens that the predictor fills are a subset of those that the target touches"
    below = canvas.paragraph(10, 10, text, 12, 90, INK)
    columns = np.flatnonzero((canvas.to_picture() < 200).any((0, 2)))
    assert columns.min() >= 9 and columns.max() <= 101 and below > 10 + 4 * 12


def test_dashes_leave_gaps_and_reach_both_ends() -> None:
    canvas = Canvas(120, 20)
    canvas.line([(10, 10), (110, 10)], INK, 2, dash=8)
    line = dark(canvas.to_picture())[10]
    assert line[11] and line[108] and 0.35 < line[10:110].mean() < 0.65


def test_an_arrow_ends_at_its_point() -> None:
    canvas = Canvas(100, 40)
    canvas.arrow([(10, 20), (90, 20)])
    columns = np.flatnonzero((canvas.to_picture() < 128).any((0, 2)))
    assert columns.min() == pytest.approx(10, abs=1.5) and columns.max() == pytest.approx(89, abs=1.5)
