"""Pixels of the direct path against tiffslide and OpenSlide, exactly, on the real slides and on every compression."""

import numpy as np
import pytest
import tifffile
import tiffslide

from pathray.wsi.reader import open_slide
from tests.builders.slides import CODECS, LOSSLESS, REAL, tissue_image, write_slide

openslide = pytest.importorskip("openslide", reason="OpenSlide is the oracle here")

SLIDES = (
    "CMU-1-Small-Region.svs",
    "TCGA-CR-7395-01A-01-TS1.svs",
    "derived/CMU1_pyramid_generic.tiff",
    "derived/CMU1_pyramid_jp2k.svs",
    "derived/CMU1_pyramid_jpeg.svs",
)


@pytest.fixture(scope="module", params=SLIDES)
def real(request):
    path = REAL / request.param
    if not path.is_file():
        pytest.skip(f"no real slide at {path}")
    return str(path)


def whole(library, level):
    """A level as a library reads it in one piece from its origin, where no rounding of coordinates comes in."""
    size = library.level_dimensions[level]
    return np.asarray(library.read_region((0, 0), level, size).convert("RGB"))


def on_ground(image, x, y, width, height):
    """A box of `image`, white outside."""
    out = np.full((height, width, 3), 255, np.uint8)
    h, w = image.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, w), min(y + height, h)
    if x0 < x1 and y0 < y1:
        out[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return out


def boxes(width, height, tile=240, count=5):
    """Aligned, unaligned, single rows and columns, over every edge, outside."""
    rng = np.random.default_rng(3)
    fixed = [(0, 0, tile, tile), (tile, tile, tile, tile), (tile, 0, 2 * tile, tile), (-7, -9, 40, 50)]
    fixed += [(width - 20, height - 30, 64, 64), (0, height - 1, width, 1), (width - 1, 0, 1, height)]
    fixed += [(width + 5, 0, 8, 8), (-300, 10, 256, 256), (5, -100, 30, 100)]
    anywhere = [(*(int(v) for v in rng.integers(-60, (width, height))), 256, 193) for _ in range(count)]
    return fixed + anywhere


def test_every_level_and_box_equals_openslide_and_tiffslide_on_real_slides(real):
    ours, theirs = open_slide(real), [openslide.OpenSlide(real), tiffslide.TiffSlide(real)]
    assert ours.backend == "tiff"
    assert ours.level_shapes == theirs[0].level_dimensions
    np.testing.assert_allclose(ours.level_downsamples, theirs[0].level_downsamples, rtol=1e-12)
    for level, (w, h) in enumerate(ours.level_shapes):
        images = [whole(library, level) for library in theirs if level < library.level_count]
        for image in images[1:]:
            np.testing.assert_array_equal(image, images[0])
        for box in boxes(w, h):
            np.testing.assert_array_equal(ours.read_level(level, *box), on_ground(images[0], *box), str((level, box)))


def test_unaligned_level_zero_regions_equal_both_libraries_own_reads(real):
    ours, os_slide, ts_slide = open_slide(real), openslide.OpenSlide(real), tiffslide.TiffSlide(real)
    for x, y in [(0, 0), (113, 77), (1000, 1203), (701, 1999)]:
        pixels = ours.read_level(0, x, y, 300, 260)
        np.testing.assert_array_equal(pixels, np.asarray(os_slide.read_region((x, y), 0, (300, 260)).convert("RGB")))
        np.testing.assert_array_equal(pixels, ts_slide.read_region((x, y), 0, (300, 260), as_array=True))


def test_the_third_level_of_the_generic_tiff_is_seen_though_tiffslide_misses_it():
    path = REAL / "derived/CMU1_pyramid_generic.tiff"
    if not path.is_file():
        pytest.skip(f"no real slide at {path}")
    assert len(tiffslide.TiffSlide(path).level_dimensions) == 2
    assert open_slide(str(path)).level_shapes == ((2220, 2967), (555, 741), (277, 370))


def test_spacing_of_the_real_slides_is_the_libraries_or_none(real):
    ours, theirs = open_slide(real), openslide.OpenSlide(real).properties.get("openslide.mpp-x")
    if theirs is None:
        assert (ours.mpp, ours.mpp_source) == (None, None)
    else:
        assert ours.mpp == pytest.approx(float(theirs), rel=1e-6)
        assert ours.mpp_source == ("tags" if real.endswith(".tiff") else "header")


# 33003 holds YCbCr, which tiffslide shows as RGB: its colours are compared with those written, below
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "jp2k_33003"])
def test_every_compression_equals_tiffslide(tmp_path, codec):
    path = write_slide(tmp_path / "slide.tif", codec=codec, width=530, height=410)
    ours, theirs = open_slide(str(path)), tiffslide.TiffSlide(path)
    assert ours.level_shapes == theirs.level_dimensions and len(ours.level_shapes) == 3
    for level, (w, h) in enumerate(ours.level_shapes):
        image = whole(theirs, level)
        for box in boxes(w, h, tile=256, count=4):
            np.testing.assert_array_equal(ours.read_level(level, *box), on_ground(image, *box), str((level, box)))


@pytest.mark.parametrize("codec", ["jpeg", "jpeg_rgb", *LOSSLESS])
def test_every_compression_that_openslide_knows_equals_it(tmp_path, codec):
    path = write_slide(tmp_path / "slide.tif", codec=codec, width=530, height=410)
    ours, theirs = open_slide(str(path)), openslide.OpenSlide(path)
    assert ours.level_shapes == theirs.level_dimensions
    for level, (w, h) in enumerate(ours.level_shapes):
        np.testing.assert_array_equal(ours.read_level(level, 0, 0, w, h), whole(theirs, level))


@pytest.mark.parametrize("codec", ["jpeg", "jpeg_rgb", "jp2k_33003", "jp2k_33005", "jp2k"])
def test_lossy_levels_have_the_colours_that_were_written(tmp_path, codec):
    image = tissue_image(530, 410, seed=4)
    path = write_slide(tmp_path / "slide.tif", codec=codec, image=image)
    error = np.abs(open_slide(str(path)).read_level(0, 0, 0, 530, 410).astype(int) - image)
    assert error.mean(axis=(0, 1)).max() < 4


@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_levels_give_back_what_was_written(tmp_path, codec):
    image = tissue_image(530, 410, seed=4)
    path = write_slide(tmp_path / "slide.tif", codec=codec, image=image)
    np.testing.assert_array_equal(open_slide(str(path)).read_level(0, 0, 0, 530, 410), image)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("kind", ["generic", "subifds", "svs", "ome"])
def test_all_pyramid_layouts_give_every_level_and_its_spacing(tmp_path, kind, bigtiff, byteorder):
    image = tissue_image(530, 410)
    suffix = {"svs": ".svs", "ome": ".ome.tif"}.get(kind, ".tif")
    path = tmp_path / f"slide{suffix}"
    write_slide(path, kind=kind, bigtiff=bigtiff, byteorder=byteorder, codec="deflate", image=image, mpp=0.25)
    slide = open_slide(str(path))
    assert slide.level_shapes == ((530, 410), (265, 205), (132, 102))
    assert slide.mpp == pytest.approx(0.25) and slide.mpp_source == ("header" if kind in ("svs", "ome") else "tags")
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 530, 410), image)


@pytest.mark.parametrize("codec", ["deflate", "lzw_predictor"])
def test_separate_colour_planes_are_put_together(tmp_path, codec):
    path = write_slide(tmp_path / "slide.tif", planar=True, codec=codec, width=530, height=410, downsamples=(1, 2))
    image = np.moveaxis(tifffile.imread(path, key=0), 0, 2)
    pixels = open_slide(str(path)).read_level(0, 33, 44, 400, 300)
    np.testing.assert_array_equal(pixels, image[44:344, 33:433])


def test_grey_slides_become_rgb_and_white_is_zero_is_inverted(tmp_path):
    grey = tissue_image(300, 280)[:, :, 1]
    for photometric, expected in (("minisblack", grey), ("miniswhite", 255 - grey)):
        path = tmp_path / f"{photometric}.tif"
        tifffile.imwrite(path, grey, tile=(128, 128), photometric=photometric, compression="deflate")
        pixels = open_slide(str(path)).read_level(0, 0, 0, 300, 280)
        np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))
