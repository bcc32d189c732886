"""SDPC slides through opensdpc, which is played by a module that reads its coordinates as that package does."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pathray.errors import UnreadableUnit, UserError
from pathray.features.inputs import slides_in
from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_regions

SCALE = 0.25


class FakeSlide:
    """Two levels; a pixel of a level says where it is."""

    opened = 0

    def __init__(self, path, ruler):
        type(self).opened += 1
        self.level_dimensions, self.level_downsamples = ((200, 120), (50, 30)), (1.0, 1 / SCALE)
        head = SimpleNamespace(contents=SimpleNamespace(ruler=ruler))
        self.sdpc = SimpleNamespace(contents=SimpleNamespace(picHead=head))

    def read_region(self, location, level, size):
        down = self.level_downsamples[level]
        x0, y0 = int(location[0] / down), int(location[1] / down)
        x, y = np.meshgrid(np.arange(x0, x0 + size[0]), np.arange(y0, y0 + size[1]))
        assert x.max() < self.level_dimensions[level][0] and y.max() < self.level_dimensions[level][1]
        return Image.fromarray(np.stack([x, y, np.full_like(x, 7 + level)], -1).astype(np.uint8))


@pytest.fixture
def opensdpc(monkeypatch):
    module = ModuleType("opensdpc")
    module.__spec__ = ModuleSpec("opensdpc", None)
    module.ruler = 0.25
    module.OpenSdpc = lambda path: FakeSlide(path, module.ruler)
    monkeypatch.setitem(sys.modules, "opensdpc", module)
    return module


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "a.sdpc"
    path.write_bytes(b"SQ\x00\x01")
    return str(path)


def test_levels_spacing_and_pixels_are_the_packages(opensdpc, slide):
    reader = open_slide(slide)
    assert (reader.backend, reader.mpp, reader.mpp_source) == ("opensdpc", 0.25, "header")
    assert reader.level_shapes == ((200, 120), (50, 30)) and reader.level_downsamples == (1.0, 4.0)
    found = reader.read_level(1, 3, 5, 4, 2)
    assert found[:, :, 0].tolist() == [[3, 4, 5, 6]] * 2 and found[:, :, 1].tolist() == [[5] * 4, [6] * 4]
    assert (found[:, :, 2] == 8).all()


def test_what_lies_outside_is_white(opensdpc, slide):
    found = open_slide(slide).read_level(1, 48, 28, 4, 4)
    assert (found[2:] == 255).all() and (found[:, 2:] == 255).all() and found[0, 0].tolist() == [48, 28, 8]


def test_regions_are_read_at_a_spacing(opensdpc, slide):
    reader = open_slide(slide)
    (region,) = read_regions(reader, np.array([[100.0, 60.0]]), 8, 1.0, mpp0=0.25)
    assert region.pixels.shape == (8, 8, 3) and (region.pixels[:, :, 2] == 8).all()
    assert region.pixels[0, :, 0].tolist() == list(range(21, 29))


@pytest.mark.parametrize("ruler", [0.0, float("nan"), 1e9])
def test_a_spacing_that_cannot_be_is_none(opensdpc, slide, ruler):
    opensdpc.ruler = ruler
    assert open_slide(slide).mpp is None


def test_without_the_package_the_command_that_installs_it_is_named(slide):
    with pytest.raises(
        UserError, match=r"need the package opensdpc.*a\.sdpc.*not installed.*pip install pathray\[sdpc\]"
    ):
        open_slide(slide)


def test_what_the_package_says_of_a_file_is_passed_on(opensdpc, slide):
    def fails(path):
        raise ValueError("NULL pointer access")

    opensdpc.OpenSdpc = fails
    with pytest.raises(UserError, match=r"no backend reads this slide.*opensdpc: ValueError: NULL pointer access"):
        open_slide(slide)


def test_a_damaged_region_is_the_datas_fault(opensdpc, slide, monkeypatch):
    reader = open_slide(slide)

    def fails(self, *args):
        raise OSError("bad stream")

    monkeypatch.setattr(FakeSlide, "read_region", fails)
    with pytest.raises(UnreadableUnit, match="bad stream"):
        reader.read_level(0, 0, 0, 8, 8)


def test_they_are_listed_in_a_folder(slide, tmp_path):
    assert slides_in(str(tmp_path)) == [("a", slide)]
