"""Tissue as polygons: they enclose what the mask says, in level-0 pixels."""

import numpy as np
import pytest

from pathray.wsi.contours import COLOUR, MAX_SIDE, area, draw_outline, tissue_polygons


def test_a_square_of_cells_is_a_square_in_level0_pixels_with_its_corners_cut():
    mask = np.zeros((10, 20), np.uint8)
    mask[2:6, 4:12] = 255
    [(ring, holes)] = tissue_polygons(mask, 2000, 500)  # cells of 100 x 50 pixels
    assert not holes and (ring[0] == ring[-1]).all() and len(ring) == 9
    assert (ring.min(0) == [400, 100]).all() and (ring.max(0) == [1200, 300]).all()
    assert area(ring) == pytest.approx(800 * 200 - 4 * 50 * 25 / 2)


def test_holes_are_holes_and_the_largest_piece_comes_first():
    mask = np.zeros((40, 40), np.uint8)
    mask[1:5, 1:5] = 1
    mask[10:30, 10:30] = 1
    mask[15:20, 15:20] = 0
    (large, [hole]), (small, none) = tissue_polygons(mask, 40, 40)
    assert not none and area(large) == pytest.approx(400, abs=1) and area(small) == pytest.approx(16, abs=1)
    assert (hole.min(0) == 15).all() and (hole.max(0) == 20).all()


def test_tissue_up_to_the_edge_stays_inside_the_slide():
    [(ring, _)] = tissue_polygons(np.ones((7, 9), np.uint8), 901, 703)
    assert (ring.min(0) == 0).all() and (ring.max(0) == [901, 703]).all()
    assert tissue_polygons(np.zeros((7, 9), np.uint8), 901, 703) == []


def test_a_large_mask_is_traced_at_a_bounded_size():
    y, x = np.mgrid[:3000, :6000]
    disc = (((x - 3000) / 2000) ** 2 + ((y - 1500) / 1000) ** 2 < 1).astype(np.uint8)
    [(ring, _)] = tissue_polygons(disc, 60_000, 30_000)
    assert len(ring) < 4 * MAX_SIDE and area(ring) == pytest.approx(np.pi * 20_000 * 10_000, rel=0.002)


def test_the_outline_is_drawn_on_the_edge_and_the_tissue_keeps_its_colours():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    drawn = draw_outline(np.full((200, 200, 3), 200, np.uint8), mask)
    assert (drawn[100, 100] == 200).all() and (drawn[10, 10] < 200).all()
    assert any((drawn[100, x] == COLOUR).all() for x in range(45, 55))
