import numpy as np
import pytest

from pathray.wsi.backends.source import LocalFile
from pathray.wsi.reader import open_mask, open_slide
from pathray.wsi.regions import level_box, read_region, read_regions, round_half_up
from pathray.wsi.resize import resize
from tests.builders.slides import REAL, tissue_image, write_mask, write_slide


@pytest.fixture(scope="module")
def image():
    return tissue_image(900, 700, seed=5)


@pytest.fixture(scope="module")
def slide(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("regions") / "slide.tif"
    return open_slide(str(write_slide(path, codec="deflate", image=image, mpp=0.5, downsamples=(1, 2, 4))))


def test_at_the_slides_own_spacing_a_region_is_cut_out_around_its_centre(slide, image):
    for cx, cy, size in [(300, 200, 128), (301, 203, 127), (450, 350, 64)]:
        region = read_region(slide, cx, cy, size, 0.5, mpp0=0.5)
        x0, y0 = cx - size // 2, cy - size // 2
        np.testing.assert_array_equal(region.pixels, image[y0 : y0 + size, x0 : x0 + size])
        assert (region.level, region.source_mpp) == (0, 0.5)


def test_a_level_with_the_spacing_is_read_as_it_is(slide):
    region = read_region(slide, 400, 300, 100, 1.0, mpp0=0.5)
    np.testing.assert_array_equal(region.pixels, slide.read_level(1, 150, 100, 100, 100))
    assert (region.level, region.source_mpp) == (1, 1.0)


def test_between_levels_the_finer_one_is_averaged(slide, image):
    region = read_region(slide, 400, 300, 100, 0.75, mpp0=0.5)  # size0 150, x0 325
    assert region.level == 0
    np.testing.assert_array_equal(region.pixels, resize(image[225:375, 325:475], 100, 100))


def test_finer_than_the_slide_is_interpolated(slide, image):
    region = read_region(slide, 400, 300, 100, 0.25, mpp0=0.5)
    np.testing.assert_array_equal(region.pixels, resize(image[275:325, 375:425], 100, 100))


def test_the_boxes_follow_the_rule_with_halves_rounded_up():
    assert [round_half_up(v) for v in (0.5, 1.5, -0.5, -1.5, 2.49)] == [1, 2, 0, -1, 2]
    # size0 = floor(101 * 0.75 / 0.5 + .5) = 152, x0 = 400 - 76
    assert level_box(400, 300, (101, 101), 1.5, 1.0) == (324, 224, 152, 152)
    # size0 = 513, x0 = 1000 - 256 = 744; a level with down 2: 372, 256.5 -> 257
    assert level_box(1000, 1000, (513, 513), 1.0, 2.0) == (372, 372, 257, 257)
    assert level_box(10.5, 9.4, (4, 6), 1.0, 1.0) == (9, 6, 4, 6)


def test_width_and_height_may_differ(slide, image):
    region = read_region(slide, 400, 300, (60, 40), 0.5, mpp0=0.5)
    np.testing.assert_array_equal(region.pixels, image[280:320, 370:430])


def test_outside_is_white_on_every_side_and_far_away(slide, image):
    pixels = read_region(slide, 0, 0, 100, 0.5, mpp0=0.5).pixels
    assert (pixels[:50] == 255).all() and (pixels[:, :50] == 255).all()
    np.testing.assert_array_equal(pixels[50:, 50:], image[:50, :50])
    pixels = read_region(slide, 900, 700, 100, 0.5, mpp0=0.5).pixels
    np.testing.assert_array_equal(pixels[:50, :50], image[650:, 850:])
    assert (pixels[50:] == 255).all() and (pixels[:, 50:] == 255).all()
    assert (read_region(slide, -5000, 90000, 32, 1.5, mpp0=0.5).pixels == 255).all()


def test_masks_are_read_by_the_same_geometry_with_nearest_pixels(tmp_path, image):
    drawn = (image[:, :, 1] < 180).astype(np.uint8) * 7
    mask = open_mask(str(write_mask(tmp_path / "mask.tif", drawn, downsamples=(1, 2))))
    region = read_region(mask, 160, 350, 100, 0.75, mpp0=0.5)
    np.testing.assert_array_equal(region.pixels, resize(drawn[275:425, 85:235], 100, 100, mask=True))
    assert set(np.unique(region.pixels)) == {0, 7}
    assert (read_region(mask, -500, 0, 64, 0.5, mpp0=0.5).pixels == 0).all()


def test_overlapping_regions_equal_single_ones_and_decode_each_tile_once(slide, monkeypatch):
    """Trap 16: a context and its targets that share a level are served by one read."""
    fetched, read_many = [], LocalFile.read_many
    monkeypatch.setattr(LocalFile, "read_many", lambda s, r: fetched.extend(o for o, _ in r) or read_many(s, r))
    centres = [(400.0, 300.0), (420.0, 310.0), (380.0, 280.0), (405.0, 333.0), (-20.0, 10.0)]
    for mpp in (0.5, 1.0, 0.7):
        fresh = open_slide(slide.path, cache_bytes=0)
        fetched.clear()
        regions = read_regions(fresh, centres, 200, mpp, mpp0=0.5)
        assert 0 < len(fetched) == len(set(fetched))
        for (x, y), region in zip(centres, regions, strict=True):
            alone = read_region(slide, x, y, 200, mpp, mpp0=0.5)
            np.testing.assert_array_equal(region.pixels, alone.pixels)
            assert (region.level, region.source_mpp) == (alone.level, alone.source_mpp)


def test_libraries_serve_regions_too(slide):
    pytest.importorskip("openslide")
    other = open_slide(slide.path, backend="openslide")
    for a, b in zip(
        *(read_regions(s, [(300, 200), (310, 205)], 90, 0.75, mpp0=0.5) for s in (slide, other)), strict=True
    ):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_resampled_regions_of_a_real_slide_equal_openslide_then_area():
    openslide = pytest.importorskip("openslide")
    path = REAL / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no real slide at {path}")
    ours, theirs = open_slide(str(path)), openslide.OpenSlide(path)
    for cx, cy, mpp in [(1000, 1200, 1.0), (1100, 700, 0.8), (900, 2000, 0.499 * 3)]:
        size0 = int(np.floor(256 * mpp / 0.499 + 0.5))
        corner = (cx - size0 // 2, cy - size0 // 2)
        pixels = np.asarray(theirs.read_region(corner, 0, (size0, size0)).convert("RGB"))
        region = read_region(ours, cx, cy, 256, mpp, mpp0=0.499)
        np.testing.assert_array_equal(region.pixels, resize(pixels, 256, 256))
