"""Tiles of a slide: where they lie, how much tissue they hold. The oracle counts level-0 pixels one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathray.errors import UserError
from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_regions
from pathray.wsi.tiling import TileSpec, tile_grid, tiles_of, tissue_of, tissue_share
from tests.builders.slides import write_mask, write_slide


def shares_by_counting(mask, width, height, left, top, size):
    """Each level-0 pixel belongs to the mask cell it lies in (whole cells only)."""
    full = np.kron(mask > 0, np.ones((height // mask.shape[0], width // mask.shape[1])))
    padded = np.zeros((height + size, width + size))
    padded[:height, :width] = full
    return np.array([[padded[y : y + size, x : x + size].mean() for x in left] for y in top])


@pytest.mark.parametrize(
    ("length", "size", "step", "edges", "expected"),
    [
        (100, 25, 25, False, [0, 25, 50, 75]),
        (99, 25, 25, False, [0, 25, 50]),
        (99, 25, 25, True, [0, 25, 50, 75]),
        (100, 25, 25, True, [0, 25, 50, 75]),
        (100, 40, 20, False, [0, 20, 40, 60]),
        (101, 40, 20, True, [0, 20, 40, 60, 80]),
        (20, 25, 25, False, []),
        (20, 25, 25, True, [0]),
    ],
)
def test_the_tile_that_just_fits_is_kept_and_an_edge_tile_shows_something_new(length, size, step, edges, expected):
    assert tile_grid(length, size, step, edges=edges).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 30),
    st.integers(0, 2**30),
)
def test_a_tiles_share_is_exact_area_whatever_the_masks_resolution(h, w, by_y, by_x, size, seed):
    rng = np.random.default_rng(seed)
    mask, width, height = rng.integers(0, 2, (h, w)), w * by_x, h * by_y
    left, top = rng.integers(0, width, 4), rng.integers(0, height, 3)
    found = tissue_share(mask, width, height, left, top, size)
    np.testing.assert_allclose(found, shares_by_counting(mask, width, height, left, top, size), atol=1e-8)


def test_tiles_come_in_raster_order_and_touch_each_other():
    mask = np.ones((7, 9))
    tiles = tiles_of(mask, 903, 707, 0.499, TileSpec(100, 0.5))
    assert tiles.size == 100 and len(tiles) == 9 * 7
    assert tiles.coords.dtype == np.int64 and (tiles.tissue == 1).all()
    expected = [(x, y) for y in range(0, 601, 100) for x in range(0, 801, 100)]
    assert [tuple(c) for c in tiles.coords] == expected


def test_only_tiles_with_enough_tissue_are_kept():
    mask = np.zeros((4, 4))
    mask[1, 2] = 1
    mask[2, :] = 1
    tiles = tiles_of(mask, 40, 40, 1.0, TileSpec(20, 1.0, min_tissue_fraction=0.5))
    assert tiles.coords.tolist() == [[0, 20], [20, 20]] and tiles.tissue.tolist() == [0.5, 0.5]
    all_of_them = tiles_of(mask, 40, 40, 1.0, TileSpec(20, 1.0, min_tissue_fraction=0.0))
    assert all_of_them.tissue.tolist() == [0.0, 0.25, 0.5, 0.5]


def test_overlap_and_spacing_are_told_in_tile_pixels():
    spec = TileSpec(64, 0.5, overlap_px=16)
    assert (spec.size_level0(0.25), spec.step_level0(0.25), spec.size_um) == (128, 96, 32.0)
    assert tiles_of(np.ones((2, 2)), 320, 128, 0.25, spec).coords[:, 0].tolist() == [0, 96, 192]


def test_centres_give_read_regions_exactly_the_tile(tmp_path):
    path = str(write_slide(tmp_path / "s.tiff", codec="none", downsamples=(1,), width=301, height=203))
    reader = open_slide(path)
    for size in (33, 64):
        tiles = tiles_of(np.ones((1, 1)), 301, 203, 0.5, TileSpec(size, 0.5, edges=True))
        regions = read_regions(reader, tiles.centres(), size, 0.5, mpp0=0.5)
        for (x, y), region in zip(tiles.coords, regions, strict=True):
            np.testing.assert_array_equal(region.pixels, reader.read_level(0, int(x), int(y), size, size))


def test_a_given_mask_decides_and_fine_masks_are_read_coarsely(tmp_path, monkeypatch):
    path = str(write_slide(tmp_path / "s.tiff", width=1024, height=768))
    drawn = np.zeros((768, 1024), np.uint8)
    drawn[128:384, 256:640] = 255
    spec, reader = TileSpec(64, 1.0, min_tissue_fraction=0.9), open_slide(path)
    expected = [[x, y] for y in (128, 256) for x in (256, 384, 512)]
    for name in ("m.tiff", "m.png"):
        mask = tissue_of(reader, 0.5, str(write_mask(tmp_path / name, drawn)), spec)
        assert mask.shape == (96, 128) and set(np.unique(mask)) == {0, 1}
        assert tiles_of(mask, 1024, 768, 0.5, spec).coords.tolist() == expected
    monkeypatch.setattr("pathray.wsi.tiling.MAX_CELLS", 1200)
    assert tissue_of(reader, 0.5, str(tmp_path / "m.tiff"), spec).size <= 1300


def test_without_a_mask_the_stained_part_is_found(tmp_path):
    path = str(write_slide(tmp_path / "s.tiff", width=1800, height=1400, downsamples=(1, 2, 4)))
    tiles = tiles_of(tissue_of(open_slide(path), 0.5, "", TileSpec(64, 1.0)), 1800, 1400, 0.5, TileSpec(64, 1.0))
    centres = tiles.coords + tiles.size / 2
    assert 40 < len(tiles) < 154
    assert (np.abs(centres - (900, 700)) / (900, 700)).max() < 1.0 and np.abs(centres.mean(0) - (900, 700)).max() < 120


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"size_px": 0}, "tile_px"),
        ({"mpp": 0.0}, "mpp"),
        ({"mpp": float("nan")}, "mpp"),
        ({"overlap_px": 64}, "overlap_px"),
        ({"min_tissue_fraction": 1.5}, "min_tissue_fraction"),
    ],
)
def test_what_makes_no_tile_is_refused_by_its_key(options, key):
    with pytest.raises(UserError, match=f"key: {key}"):
        TileSpec(**({"size_px": 64, "mpp": 0.5} | options))
