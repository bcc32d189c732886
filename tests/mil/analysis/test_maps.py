"""Tiles' attention at its place: exact edges, overlap, colours by percentile, and GeoJSON that streams whole or not."""

import json
import tracemalloc

import numpy as np
import pytest

from mil.analysis.attention import Attention, check_same
from mil.analysis.heatmap import draw_heatmap, rows_to_draw
from mil.analysis.painting import Frame, colour_of, overlay, paint
from mil.analysis.places import Tiles, check_inside
from mil.analysis.slide_view import most_attended, read_crops, view_blank, view_slide
from mil.analysis.tags import HEIGHT, place_tags
from mil.analysis.tiles_geojson import write_geojson
from mil.analysis.trained_run import JudgedSlide
from pathray.errors import UserError
from pathray.store.storage import Storage
from pathray.wsi.reader import open_slide
from tests.builders.slides import write_slide


def tiles(corners, side=4.0, unit="px"):
    return Tiles(np.array(corners, np.float64), side, unit)


def attention(weights, names=("attention",)):
    weights = np.atleast_2d(np.array(weights, np.float64))
    return Attention(names, weights, np.log(np.maximum(weights, 1e-30)), {}, np.zeros(2))


SLIDE = JudgedSlide("s1", "P1", "tumor", "fold_0", {"prob_normal": 0.25, "prob_tumor": 0.75})


def test_a_tile_covers_its_own_pixels_and_neighbours_meet():
    frame = Frame.of_slide((40, 20), (20, 10))  # a picture at half the size
    painted = paint(frame, tiles([(0, 0), (4, 0), (36, 16)]), np.array([1.0, 2.0, 3.0]))
    expected = np.full((10, 20), np.nan)
    expected[0:2, 0:2], expected[0:2, 2:4], expected[8:10, 18:20] = 1, 2, 3
    np.testing.assert_allclose(painted, expected, atol=1e-12)


def test_overlapping_tiles_are_averaged_pixel_by_pixel():
    """Against a loop over tiles, at a scale that is no whole number, with tiles over the border."""
    draw = np.random.default_rng(0)
    some = tiles(draw.uniform(-5, 95, (60, 2)), side=13.7)
    values, frame = draw.normal(size=60), Frame(0.0, 0.0, (0.73, 0.91), (73, 91))
    total, count = np.zeros((91, 73)), np.zeros((91, 73))
    for (x, y), value in zip(some.corners, values, strict=True):
        x0, x1 = (int(np.floor(v * 0.73 + 0.5)) for v in (x, x + 13.7))
        y0, y1 = (int(np.floor(v * 0.91 + 0.5)) for v in (y, y + 13.7))
        rows, columns = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
        total[rows, columns] += value
        count[rows, columns] += 1
    expected = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    np.testing.assert_allclose(paint(frame, some, values), expected, atol=1e-10)
    assert count.max() > 2 and (count == 0).any()


def test_a_tile_that_is_smaller_than_a_pixel_is_still_seen():
    painted = paint(Frame.of_slide((10000, 10000), (50, 50)), tiles([(5000, 5000)], side=10.0), np.array([7.0]))
    assert np.isfinite(painted).sum() == 1 and painted[25, 25] == 7


def test_one_outlier_does_not_change_the_other_tiles_colours():
    weights = np.arange(1.0, 102.0)
    plain = attention(weights).percentiles[0]
    weights[-1] = 1e9
    np.testing.assert_array_equal(attention(weights).percentiles[0], plain)
    np.testing.assert_allclose(plain, np.arange(101.0))


def test_constant_attention_is_drawn_in_the_middle_of_the_scale():
    even = attention(np.full(9, 1 / 9))
    assert (even.percentiles == 50).all() and even.spread(0) == pytest.approx(1)
    assert attention([1.0]).percentiles.tolist() == [[50]] and attention([0.0, 1.0]).spread(0) == pytest.approx(0.5)
    some = tiles([(4 * (i % 3), 4 * (i // 3)) for i in range(9)])
    for view in (view_blank(some, np.arange(3), longest=100), view_blank(some, np.arange(0), longest=100, mpp=0.5)):
        picture = draw_heatmap(SLIDE, even, some, view)
        middle = overlay(view.picture, np.full(view.picture.shape[:2], 50.0), 0.9)[0, 0]
        assert (picture == middle).all(axis=2).sum() > 1000


def test_an_overlay_is_only_where_tiles_are():
    picture = np.full((2, 2, 3), 200, np.uint8)
    out = overlay(picture, np.array([[np.nan, 0.0], [100.0, np.nan]]), 0.5)
    assert out[0, 0].tolist() == out[1, 1].tolist() == [200] * 3
    assert out[0, 1].tolist() == [int(100 + c / 2 + 0.5) for c in colour_of(0)]


def test_rows_of_classes_are_drawn_and_heads_are_not():
    assert rows_to_draw(attention(np.ones((2, 3)), ("normal", "tumor")), SLIDE) == [1, 0]
    assert rows_to_draw(attention(np.ones((3, 3)), ("mean of heads", "head_0", "head_1")), SLIDE) == [0]
    wrong = JudgedSlide(
        "s", "P", "b", "fold_0", {f"prob_{c}": p for c, p in zip("abcdef", (0, 0.1, 0, 0.2, 0, 0.7), strict=True)}
    )
    assert rows_to_draw(attention(np.ones((6, 3)), tuple("abcdef")), wrong) == [5, 1, 0, 2]


def test_numbers_of_overlapping_tiles_do_not_cover_each_other():
    """Nine tiles that overlap by half, in a corner of the panel."""
    frames = [(x, y, x + 20.0, y + 20.0) for x in (80.0, 90.0, 100.0) for y in (0.0, 10.0, 20.0)]
    found = place_tags(frames, [14.0] * 9, (0.0, 0.0, 120.0, 200.0))
    for i, (x, y) in enumerate(found):
        assert 0 <= x <= 120 - 14 and 0 <= y <= 200 - HEIGHT
        assert all(abs(x - u) >= 14 or abs(y - v) >= HEIGHT for u, v in found[:i])
    assert place_tags(frames[:1], [14.0], (0.0, 0.0, 200.0, 200.0)) == [(102.0, 0.0)]
    assert len(place_tags(frames, [14.0] * 9, (0.0, 0.0, 5.0, 5.0))) == 9


def test_another_prediction_than_the_tables_is_refused():
    assert check_same({"prob_a": 0.5 + 1e-6}, {"prob_a": 0.5}, "s1") == pytest.approx(1e-6, rel=1e-3)
    with pytest.raises(UserError, match="features or weights have changed.*s1.*0.510000.*0.500000"):
        check_same({"prob_a": 0.51}, {"prob_a": 0.5}, "s1")


def area(ring):
    x, y = np.array(ring).T
    return ((x[:-1] * y[1:]) - (x[1:] * y[:-1])).sum() / 2


def test_geojson_has_a_closed_counter_clockwise_ring_per_tile_at_its_place(tmp_path):
    some = tiles([(0, 0), (256.5, 128.25), (3, 9)], side=128.0)
    found = attention([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]], ("normal", "tumor"))
    write_geojson(Storage.of(str(tmp_path)), "s1.geojson", some, found, 1)
    features = json.loads((tmp_path / "s1.geojson").read_text())["features"]
    assert [f["geometry"]["type"] for f in features] == ["Polygon"] * 3
    for feature, corner in zip(features, some.corners.tolist(), strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == corner and len(ring) == 5 and area(ring) == 128.0**2
        assert feature["properties"]["objectType"] == "tile"
    measured = features[1]["properties"]["measurements"]
    assert measured["attention normal"] == 0.7 and measured["attention percentile normal"] == 100
    assert measured["attention tumor"] == 0.3 and measured["attention percentile tumor"] == 25
    assert features[2]["properties"]["classification"]["name"] == "Attention 95-100%"


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def test_geojson_of_many_tiles_is_streamed(tmp_path, n):
    some = tiles(np.stack([np.arange(n) % 400, np.arange(n) // 400], 1) * 256.0, side=256.0)
    found = attention(np.random.default_rng(0).random(n))
    tracemalloc.start()
    write_geojson(Storage.of(str(tmp_path)), "s.geojson", some, found, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "s.geojson").stat().st_size > 300 * n and peak < 60 * n + 1_000_000


def test_geojson_that_fails_leaves_the_older_file_and_no_part(tmp_path):
    (tmp_path / "s.geojson").write_text("older")
    with pytest.raises(ValueError, match="Out of range float|not JSON compliant"):
        write_geojson(Storage.of(str(tmp_path)), "s.geojson", tiles([(0, 0), (np.nan, 4)]), attention([0.4, 0.6]), 0)
    assert (tmp_path / "s.geojson").read_text() == "older" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="spacing is unknown"):
        write_geojson(Storage.of(str(tmp_path)), "s.geojson", tiles([(0, 0)], unit="um"), attention([1.0]), 0)


def test_crops_and_thumbnail_are_of_the_tiles_place(tmp_path):
    path = write_slide(tmp_path / "s.tif", width=512, height=256, codec="none", downsamples=(1,))
    some = tiles([(0, 0), (128, 64)], side=128.0)
    reader = open_slide(str(path))
    crops = read_crops(reader, some, [1])
    own = reader.read_level(0, 128, 64, 128, 128)
    means = crops[0].reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(means - own).mean() < 3
    view = view_slide(reader, some, most_attended(attention([0.1, 0.9]), 0, 1), longest=256, mpp=0.5, slide_id="s")
    assert view.picture.shape == (128, 256, 3) and view.top.tolist() == [1]
    assert view.frame.edges(some)[1].tolist() == [64, 32, 128, 96]
    with pytest.raises(UserError, match=r"outside of the slide.*s9.*1 tiles, such as at \(664, 64\)"):
        check_inside(tiles([(0, 0), (600, 0)], side=128.0), (512, 256), "s9")
    reader.close()


def test_tiles_of_a_real_slide_are_where_its_pixels_are(shared_data):
    reader = open_slide(str(shared_data / "wsi" / "CMU-1-Small-Region.svs"))
    some = tiles([(896, 896), (1024, 1792)], side=128.0)
    view = view_slide(reader, some, np.array([1]), longest=1000, mpp=reader.mpp, slide_id="cmu")
    own = [reader.read_level(0, int(x), int(y), 128, 128).mean(axis=(0, 1)) for x, y in some.corners]
    for (x0, y0, x1, y1), mean in zip(view.frame.edges(some).tolist(), own, strict=True):
        assert np.abs(view.picture[y0:y1, x0:x1].mean(axis=(0, 1)) - mean).max() < 6
    assert np.abs(view.crops[0].mean(axis=(0, 1)) - own[1]).max() < 2
    reader.close()
