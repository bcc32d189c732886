"""Overlays: every anchor of a slide, at its place and in the colour of its tissue share, over the mask it came from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ijepath.pictures import overlays
from ijepath.pictures.overlays import STOPS, SlideOverlay, draw_overlay, share_colour, slides_of
from pathray.draw.canvas import blend
from tests.builders.anchor_catalog import Built, painted_catalog


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return painted_catalog(tmp_path_factory.mktemp("overlays"))


def test_slides_come_whole_and_in_order_whatever_the_batches(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(slides_of(built.catalog))
    assert sum(o.x.size for o in whole) == built.catalog.total_anchors
    assert [o.slide["slide_id"] for o in whole] == ["north-colon-1", "south-colon-1"]
    batches = type(built.catalog).batches
    monkeypatch.setattr(type(built.catalog), "batches", lambda self, columns, size: batches(self, columns, 5))
    for a, b in zip(whole, slides_of(built.catalog), strict=True):
        assert np.array_equal(a.x, b.x) and np.array_equal(a.tissue, b.tissue)


@pytest.mark.parametrize("number", [0, 1], ids=["mask given", "mask computed"])
def test_every_anchor_is_a_dot_of_its_colour_at_its_place(built: Built, number: int) -> None:
    overlay = list(slides_of(built.catalog))[number]
    picture = draw_overlay(overlay, "small", scale=1.0).astype(int)
    unit = overlays.PICTURE / (int(560 / overlay.slide["wsi_level0_spacing_mpp"] / 16) * 16)
    for x, y, share in zip(overlay.x, overlay.y, overlay.tissue, strict=True):
        pixel = picture[round(overlays.HEADER + y * unit), round(overlays.MARGIN + x * unit)]
        assert np.abs(pixel - share_colour(share)).max() < 12


def test_the_contour_follows_the_given_mask(built: Built) -> None:
    overlay = next(iter(slides_of(built.catalog)))
    mask = np.asarray(Image.open(str(overlay.slide["mask_path"]))) > 0
    picture = draw_overlay(overlay, "small").astype(int)
    side = round(overlays.PICTURE)
    top, left = round(overlays.HEADER), round(overlays.MARGIN)
    area = picture[top : top + side, left : left + side]
    blue = np.abs(area - overlays.CONTOUR).max(-1) < 40
    large = np.asarray(Image.fromarray(mask).resize((side, side)))
    rows, columns = np.nonzero(blue)
    assert rows.size > 400
    near = [
        np.ptp(large[max(0, r - 9) : r + 10, max(0, c - 9) : c + 10].astype(int))
        for r, c in zip(rows[::7], columns[::7], strict=True)
    ]
    assert np.mean(near) > 0.95, "the contour lies on the mask's edge"


def test_tissue_shares_run_from_the_first_to_the_last_colour() -> None:
    assert share_colour(0.0) == blend(STOPS[0], STOPS[0], 0) and share_colour(1.0) == blend(STOPS[2], STOPS[2], 0)
    assert share_colour(0.5) == blend(STOPS[1], STOPS[1], 0) and share_colour(7.0) == share_colour(1.0)


def test_a_slide_without_its_file_says_so(built: Built) -> None:
    overlay = next(iter(slides_of(built.catalog)))
    gone = SlideOverlay({**overlay.slide, "wsi_path": "/nowhere/gone.svs"}, overlay.x, overlay.y, overlay.tissue)
    with pytest.raises(FileNotFoundError, match=r"gone\.svs"):
        draw_overlay(gone, "small")
