"""A slide that knows its spacing: regions and thumbnails are those of pathray.wsi, and what is wrong is said."""

import numpy as np
import pytest

import pathray
from pathray.errors import MissingFile, UserError
from pathray.features.slides import SlideJob, spacing
from pathray.wsi.reader import open_slide as open_reader
from pathray.wsi.regions import read_region
from pathray.wsi.tissue import tissue_mask
from tests.builders.slides import tissue_image, write_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slide") / "s-1.tiff", codec="none", mpp=0.5)


def test_a_region_is_a_crop_of_the_slide_at_its_own_spacing(path):
    base = tissue_image(900, 700)
    with pathray.open_slide(path) as slide:
        assert (slide.size, slide.name) == ((900, 700), "s-1")
        assert slide.mpp == pytest.approx(0.5)
        region = slide.read_region((450, 350), mpp=slide.mpp, size=(64, 32))
    assert np.array_equal(region, base[350 - 16 : 350 + 16, 450 - 32 : 450 + 32])


@pytest.mark.parametrize("center", [(448, 352), [448.0, 352.0], np.array([448, 352])])
def test_a_region_at_another_spacing_is_a_mean_of_the_slides_pixels(path, center):
    base = tissue_image(900, 700).astype(np.float64)
    blocks = base[352 - 64 : 352 + 64, 448 - 64 : 448 + 64].reshape(32, 4, 32, 4, 3).mean((1, 3))
    with pathray.open_slide(path) as slide:
        region = slide.read_region(center, mpp=2.0, size=32)
    assert region.shape == (32, 32, 3) and region.dtype == np.uint8
    assert np.abs(region - blocks).max() <= 1  # a level of the file, whose rounding is its writer's


def test_regions_are_those_of_the_library(path):
    reader = open_reader(str(path))
    with pathray.open_slide(path) as slide:
        for mpp in (0.4, 0.77, 1.0, 3.1):
            expected = read_region(reader, 300.4, 200.6, (48, 40), mpp, mpp0=reader.mpp).pixels
            assert np.array_equal(slide.read_region((300.4, 200.6), mpp, (48, 40)), expected)


def test_a_stated_spacing_overrides_the_files_as_a_manifests_does(path):
    with pathray.open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == spacing(SlideJob("s", str(path), mpp=0.25), slide.reader)[0] == 0.25
        assert slide.mpp_source == "stated"
        wide = slide.read_region((450, 350), mpp=0.5, size=64)
    with pathray.open_slide(path) as slide:
        assert np.array_equal(slide.read_region((450, 350), mpp=1.0, size=64), wide)


def test_a_slide_without_a_spacing_needs_one(tmp_path):
    path = write_slide(tmp_path / "plain.tiff", mpp=None)
    with pytest.raises(UserError, match="does not say its pixel size") as error:
        pathray.open_slide(path)
    assert error.value.where["file"] == str(path) and "mpp=" in error.value.where["expected"]
    with pathray.open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_a_thumbnail_shows_the_whole_slide(path):
    with pathray.open_slide(path) as slide:
        assert slide.thumbnail(90).shape == (70, 90, 3)
        assert slide.thumbnail().shape == (700, 900, 3)
        mean = tissue_image(900, 700).mean(axis=(0, 1))
        assert slide.thumbnail(90).mean(axis=(0, 1)) == pytest.approx(mean, abs=1)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (((450, 350), 0, 64), "mpp"),
        (((450, 350), float("nan"), 64), "mpp"),
        (((450, 350), "1.0", 64), "mpp"),
        (((450,), 1.0, 64), "center"),
        (((450, float("inf")), 1.0, 64), "center"),
        (((450, 350), 1.0, 0), "size"),
        (((450, 350), 1.0, 64.5), "size"),
        (((450, 350), 1.0, (64, 64, 3)), "size"),
    ],
)
def test_what_makes_no_region_is_refused_by_name(path, arguments, key):
    with pathray.open_slide(path) as slide, pytest.raises(UserError) as error:
        slide.read_region(*arguments)
    assert error.value.where["key"] == key


def test_what_is_no_slide_is_refused(tmp_path):
    with pytest.raises(MissingFile):
        pathray.open_slide(tmp_path / "none.svs")
    with pytest.raises(UserError, match="not a spacing"):
        pathray.open_slide(tmp_path / "none.svs", mpp=-1)


def test_a_slide_is_closed_when_its_block_ends(path, monkeypatch):
    with pathray.open_slide(path) as slide:
        closed = []
        monkeypatch.setattr(slide.reader, "close", lambda: closed.append(True))
    assert closed == [True]


def test_tissue_is_the_librarys_mask_with_its_spacing(path):
    with pathray.open_slide(path) as slide:
        mask, mpp = pathray.tissue(slide)
        assert (mask.dtype, mask.shape, mpp) == (np.bool_, (44, 56), 8.0)
        assert np.array_equal(mask, tissue_mask(slide.reader, 0.5) > 0) and 0.1 < mask.mean() < 0.9
    with pathray.open_slide(path, mpp=16.0) as slide:  # coarser than the mask would be
        assert pathray.tissue(slide).mpp == 16.0 and pathray.tissue(slide).mask.shape == (700, 900)
