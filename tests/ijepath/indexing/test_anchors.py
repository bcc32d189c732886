import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepath.indexing.anchors import TissueMap, anchors_of, grid, mask_map, reduce_mask, slide_anchors
from ijepath.indexing.index import index_slide
from ijepath.indexing.manifest import ManifestRow
from ijepath.profile import Profile
from pathray.wsi.reader import open_mask
from pathray.wsi.regions import read_region
from tests.builders.cohort import square_mask, write_mask, write_slide


class MaskReader:
    """A mask pyramid in memory; counts what is read of each level."""

    def __init__(self, *levels):
        self.levels = [np.asarray(level, np.uint8) for level in levels]
        self.level_shapes = tuple((a.shape[1], a.shape[0]) for a in self.levels)
        self.read = [0] * len(levels)

    def read_level(self, level, x, y, width, height):
        self.read[level] += width * height
        return self.levels[level][y : y + height, x : x + width]


def brute_force(mask, width, height, left, top, size):
    """Tissue share of every window by weighing each mask pixel with its overlap, in float64."""

    def overlap(n, length, starts):
        edges = np.linspace(0, length, n + 1)
        low = np.maximum(edges[:-1][None], np.asarray(starts)[:, None])
        high = np.minimum(edges[1:][None], np.asarray(starts)[:, None] + size)
        return np.maximum(high - low, 0.0)

    weights_y, weights_x = overlap(mask.shape[0], height, top), overlap(mask.shape[1], width, left)
    return weights_y @ (mask > 0).astype(np.float64) @ weights_x.T / size**2


@pytest.mark.parametrize(("length", "count", "last"), [(1024, 1, 0), (1535, 1, 0), (1536, 2, 512), (8192, 15, 7168)])
def test_an_anchor_that_just_fits_at_the_right_or_bottom_edge_is_kept(length, count, last):
    edges = grid(length, 1024, 512)
    assert (len(edges), edges[-1]) == (count, last)


@given(st.integers(1, 3000), st.integers(1, 500), st.integers(1, 300))
def test_the_grid_is_every_multiple_of_the_stride_that_fits(length, size, stride):
    assert grid(length, size, stride).tolist() == [x for x in range(0, length, stride) if x + size <= length]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(3, 40), st.integers(3, 40)),
    st.floats(1.0, 9.0),
    st.floats(1.0, 9.0),
    st.data(),
)
def test_tissue_shares_equal_brute_force_area_arithmetic(seed, shape, scale_x, scale_y, data):
    mask = np.random.default_rng(seed).integers(0, 2, shape)
    width, height = int(shape[1] * scale_x), int(shape[0] * scale_y)
    size = data.draw(st.integers(1, min(width, height)))
    left, top = grid(width, size, max(1, size // 3)), grid(height, size, max(1, size // 3))
    tissue = TissueMap.of(mask, np.linspace(0, width, shape[1] + 1), np.linspace(0, height, shape[0] + 1))
    expected = brute_force(mask, width, height, left, top, size)
    np.testing.assert_allclose(tissue.mean(left, top, size), expected, atol=2e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.integers(1, 9))
def test_reduction_by_strips_is_the_mean_of_each_cell_with_narrow_ones_at_the_edges(seed, height, width, factor):
    mask = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    expected = [
        [(mask[y : y + factor, x : x + factor] > 0).mean() for x in range(0, width, factor)]
        for y in range(0, height, factor)
    ]
    got = reduce_mask(lambda y, h: mask[y : y + h], width, height, factor, strip_bytes=3 * width * factor)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_mask_is_read_at_the_coarsest_level_that_still_serves_the_stride():
    full = np.ones((4096, 4096), np.uint8)
    reader = MaskReader(full, full[::4, ::4], full[::16, ::16], full[::64, ::64])
    tissue = mask_map(reader, 4096, 4096, 512)  # a cell may be 16 pixels wide
    assert reader.read == [0, 0, 256 * 256, 0]
    assert tissue.mean(np.array([0, 3072]), np.array([0]), 1024).tolist() == [[1.0, 1.0]]


def test_a_full_resolution_mask_is_read_once_by_strips_and_reduced():
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.integers(0, 2, (75, 64)), 30, 0), 30, 1)[:2222, :1900]
    reader = MaskReader(mask)
    tissue = mask_map(reader, 1900, 2222, 512)
    assert reader.read == [mask.size]
    assert tissue.integral.shape == (140, 120)  # cells of 16 pixels
    left, top = grid(1900, 1024, 512), grid(2222, 1024, 512)
    np.testing.assert_allclose(tissue.mean(left, top, 1024), brute_force(mask, 1900, 2222, left, top, 1024), atol=2e-9)


def test_a_coarse_mask_serves_as_it_is():
    reader = MaskReader(np.array([[1, 0], [0, 0]]))
    tissue = mask_map(reader, 2000, 2000, 100)
    assert tissue.mean(np.array([0, 500, 1000]), np.array([0, 500]), 1000).tolist() == [
        [1.0, 0.5, 0.0],
        [0.5, 0.25, 0.0],
    ]


def test_a_wholly_covered_context_has_share_one_and_not_a_hair_less():
    reader = MaskReader(np.ones((333, 777), np.uint8))
    tissue = mask_map(reader, 7001, 3003, 37)
    assert set(tissue.mean(grid(7001, 111, 37), grid(3003, 111, 37), 111).ravel()) == {1.0}


def test_a_slide_that_failed_in_the_index_is_passed_over_with_its_reason():
    anchors = slide_anchors({"slide_id": "a", "status": "failed", "error": "truncated"}, Profile())
    assert (anchors.reason, anchors.status, anchors.detail, len(anchors)) == (
        "slide_status_not_ok",
        "skipped",
        "truncated",
        0,
    )


def small():
    """Contexts of 128 level-0 pixels at 0.5 mpp, every 64."""
    return Profile(context_fov_um=64.0, target_fov_um=16.0)


def row_of(tmp_path, mask=None, name="m.png", **facts):
    path = str(write_slide(tmp_path / "s.tiff"))
    mask_path = "" if mask is None else str(write_mask(tmp_path / name, mask))
    row = index_slide(ManifestRow(2, "s", path, mask_path))
    assert row["status"] == "ok", row["error"]
    return row | facts


@pytest.mark.parametrize("name", ["m.png", "m.tiff"])
def test_anchors_of_a_masked_slide_are_the_grid_points_with_enough_tissue(tmp_path, name):
    row = row_of(tmp_path, square_mask(), name)
    anchors = slide_anchors(row, small())
    left, top = np.arange(0, 1024 - 127, 64), np.arange(0, 768 - 127, 64)
    share = brute_force(square_mask(), 1024, 768, left, top, 128)
    ys, xs = np.nonzero(share >= 0.2)
    assert anchors.status == "ok" and len(anchors) == len(xs) > 20
    np.testing.assert_array_equal(anchors.center_x, left[xs] + 64)
    np.testing.assert_array_equal(anchors.center_y, top[ys] + 64)
    np.testing.assert_allclose(anchors.tissue_fraction, share[ys, xs], atol=1e-6)
    assert (anchors.source_context_mpp, anchors.source_target_mpp) == pytest.approx((1.0, 0.5), rel=1e-4)


def test_every_context_lies_inside_the_slide_and_the_last_column_and_row_are_there(tmp_path):
    row = row_of(tmp_path, np.ones((96, 128), np.uint8))
    anchors = slide_anchors(row, small())
    size = small().context_size_level0(row["wsi_level0_spacing_mpp"])
    x0, y0 = anchors.center_x - size // 2, anchors.center_y - size // 2
    assert (x0.min(), y0.min()) == (0, 0)
    assert (x0.max() + size, y0.max() + size) == (1024, 768)


def test_a_slide_without_a_mask_gets_a_computed_one(tmp_path):
    with_mask = slide_anchors(row_of(tmp_path, square_mask()), small())
    computed = slide_anchors(row_of(tmp_path), small())
    assert computed.status == "ok"
    places = [set(zip(a.center_x.tolist(), a.center_y.tolist(), strict=True)) for a in (with_mask, computed)]
    assert len(places[0] & places[1]) > 0.8 * len(places[0] | places[1])


def test_a_profile_whose_context_does_not_fit_the_slide_is_a_reason(tmp_path):
    anchors = slide_anchors(row_of(tmp_path, square_mask()), Profile())
    assert (anchors.reason, anchors.status) == ("invalid_profile_geometry", "skipped")
    assert "1024 level-0 pixels wide, the slide 1024 x 768" in anchors.detail


def test_a_mask_that_went_away_is_a_reason(tmp_path):
    row = row_of(tmp_path, square_mask())
    (tmp_path / "m.png").unlink()
    anchors = slide_anchors(row, small())
    assert (anchors.reason, anchors.status) == ("missing_mask_path", "failed") and "m.png" in anchors.detail


def test_an_empty_mask_is_a_reason_and_not_an_error(tmp_path):
    anchors = slide_anchors(row_of(tmp_path, np.zeros((96, 128), np.uint8)), small())
    assert (anchors.reason, anchors.status) == ("no_valid_anchors", "skipped")
    assert "0.000 of the best context is tissue" in anchors.detail


def test_one_bad_slide_does_not_end_the_catalog_and_order_is_kept(tmp_path):
    good = row_of(tmp_path, square_mask())
    bad = tmp_path / "bad.tiff"
    bad.write_bytes((tmp_path / "s.tiff").read_bytes()[:300])
    rows = [good | {"slide_id": "a"}, good | {"slide_id": "b", "mask_path": str(bad)}, good | {"slide_id": "c"}]
    found = list(anchors_of(rows, small()))
    assert [(f.slide["slide_id"], f.reason) for f in found] == [("a", ""), ("b", "error"), ("c", "")]
    assert "bad.tiff" in found[1].detail


def test_a_region_read_at_an_anchor_covers_just_the_window_whose_tissue_was_measured(tmp_path):
    row = row_of(tmp_path, square_mask())
    anchors, profile, mpp0 = slide_anchors(row, small()), small(), row["wsi_level0_spacing_mpp"]
    reader = open_mask(row["mask_path"])
    mask_mpp0 = row["mask_level0_spacing_mpp"]
    size = profile.context_size_level0(mpp0)
    for i in range(0, len(anchors), 7):
        x, y = (c[i] / row["mask_to_wsi_scale_x"] for c in (anchors.center_x, anchors.center_y))
        read = read_region(reader, x, y, size // 4, mask_mpp0, mpp0=mask_mpp0).pixels
        assert (read > 0).mean() == pytest.approx(float(anchors.tissue_fraction[i]), abs=1e-6)
