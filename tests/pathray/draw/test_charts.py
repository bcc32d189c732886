"""Charts: what was logged is drawn, what was not is left out, and what cannot be drawn is refused."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from pathray.draw.charts import Panel, curve, draw_curves, running_mean, thousands
from pathray.errors import UserError

ROWS = [
    {"images_seen": 32 * i, "loss": 1 / (1 + i), "loss_min": 0.5 / (1 + i), "loss_max": 2 / (1 + i)} for i in range(9)
]
LOSS = Panel("Loss", (("loss", "mean"),), band=("loss_min", "loss_max"))


def test_a_curve_is_in_order_and_skips_what_is_not_a_number() -> None:
    rows = [
        {"images_seen": 64, "loss": 1.0},
        {"images_seen": 32, "loss": 2.0, "lr": "high"},
        {"images_seen": 96, "loss": math.nan},
        {"images_seen": 128, "loss": None},
        {"loss": 5.0},
    ]
    x, y = curve(rows, "loss")
    assert x.tolist() == [32, 64] and y.tolist() == [2.0, 1.0]
    assert curve(rows, "lr")[0].size == 0 and curve([], "loss")[1].size == 0


def test_panels_without_data_are_left_out() -> None:
    missing = Panel("Nothing", (("never_logged", "x"),))
    alone, both = (Image.open(io.BytesIO(draw_curves(ROWS, p, "t"))) for p in ([LOSS], [LOSS, missing]))
    assert alone.size == both.size and alone.tobytes() == both.tobytes()
    two = Image.open(io.BytesIO(draw_curves(ROWS, [LOSS, Panel("Again", (("loss", "x"),))], "t")))
    assert two.size[0] == 2 * alone.size[0]


def test_scale_multiplies_the_pixels() -> None:
    sizes = [Image.open(io.BytesIO(draw_curves(ROWS, [LOSS], "t", scale=s))).size for s in (1.0, 2.0)]
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])


def test_nothing_logged_is_the_users_to_know() -> None:
    with pytest.raises(UserError, match="loss"):
        draw_curves([{"images_seen": 1, "other": 2}], [LOSS], "t")


def test_running_mean_equals_a_convolution_inside_and_narrows_at_the_ends() -> None:
    y = np.random.default_rng(0).standard_normal(50)
    smooth = running_mean(y, 5)
    assert smooth[2:-2] == pytest.approx(np.convolve(y, np.ones(5) / 5, mode="valid"))
    assert smooth[0] == pytest.approx(y[:3].mean()) and smooth[-1] == pytest.approx(y[-3:].mean())


def test_long_logarithmic_and_zero_based_panels_draw() -> None:
    rows = [{"images_seen": i, "a": 1 + math.sin(i / 9), "b": 2.0} for i in range(300)]
    panels = [Panel("A", (("a", "a"), ("b", "b")), log=True), Panel("B", (("b", "b"),), from_zero=True, smooth=False)]
    assert Image.open(io.BytesIO(draw_curves(rows, panels, "t"))).size[0] == 800


def test_values_below_a_panels_low_are_drawn_there() -> None:
    far, near = ([{"images_seen": i, "share": x} for i, x in enumerate((first, 0.1, 0.4))] for first in (-900.0, -1.0))
    bounded, free = (Panel("Share", (("share", "share"),), low=low) for low in (-1.0, None))
    assert draw_curves(far, [bounded], "t") == draw_curves(near, [bounded], "t") == draw_curves(near, [free], "t")
    assert draw_curves(far, [free], "t") != draw_curves(near, [free], "t")


def test_image_counts_are_short() -> None:
    assert [thousands(v) for v in (0, 999, 1500, 2e6)] == ["0", "999", "1.5k", "2M"]
