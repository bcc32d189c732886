"""Only pages of the scan are levels, and a file that has lost one of them is damaged, not smaller."""

import struct

import numpy as np
import pytest
import tifffile

from pathray.errors import UnreadableUnit
from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_region
from pathray.wsi.spacing import axis_downsamples
from tests.builders.slides import tissue_image, write_slide

BASE = tissue_image(1200, 800, seed=1)
PLAIN = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", "metadata": None}


def write(path, *pages):
    with tifffile.TiffWriter(path) as tiff:
        for pixels, options in pages:
            tiff.write(pixels, **{**PLAIN, **options})
    return str(path)


def aperio(text, **options):
    return {"description": f"Aperio Image Library v11.2.1 \r\n{text}|AppMag = 20|MPP = 0.5", **options}


OTHER = tissue_image(602, 401, seed=9)  # the aspect of the scan, but not the scan
OTHERS = {
    "an unmarked second image": (OTHER, {}),
    "an unmarked image on other tiles": (tissue_image(600, 400, seed=9), {"tile": (256, 256)}),
    "a macro by its flag": (OTHER, {"subfiletype": 9}),
    "a label by its text": (OTHER, aperio("label 602x401", subfiletype=1)),
    "a macro by its text": (OTHER, aperio("macro 602x401", subfiletype=1)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_pages_of_other_images_are_not_levels(tmp_path, other):
    assert open_slide(write(tmp_path / "s.tif", (BASE, {}), OTHERS[other])).level_shapes == ((1200, 800),)


def test_a_second_ome_image_is_not_a_level_whatever_its_place(tmp_path):
    for order in (0, 1):
        path = tmp_path / f"{order}.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as tiff:
            for pixels in (BASE, tissue_image(600, 400, seed=3))[:: 1 - 2 * order]:
                tiff.write(pixels, **{**PLAIN, "metadata": {"axes": "YXS"}})
        assert open_slide(str(path)).level_shapes == ((1200, 800),)


@pytest.mark.parametrize("mark", [{"subfiletype": 1}, {}], ids=["marked", "unmarked"])
def test_reduced_copies_are_levels(tmp_path, mark):
    small = [(np.ascontiguousarray(BASE[::k, ::k]), mark) for k in (2, 4)]
    found = open_slide(write(tmp_path / "s.tif", (BASE, {}), *small))
    assert found.level_shapes == ((1200, 800), (600, 400), (300, 200))


def cut_chain(path, pages, to):
    """Makes the pointer behind page number `pages` lead to byte `to`."""
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[pages].offset
    data = bytearray(open(path, "rb").read())
    tags = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * tags, to)
    open(path, "wb").write(data)


@pytest.mark.parametrize("to", [0x7FFFFFFF, 8], ids=["beyond the file", "in a circle"])
@pytest.mark.parametrize("kind", ["generic", "svs"])
def test_a_chain_of_pages_that_is_cut_is_damage(tmp_path, kind, to):
    path = write_slide(tmp_path / "s.tif", kind=kind)
    cut_chain(path, 1, to)
    with pytest.raises(UnreadableUnit, match="chain of pages is broken"):
        open_slide(str(path))


def test_a_slide_without_its_full_resolution_page_is_damage_and_not_a_coarse_slide(tmp_path):
    small = np.ascontiguousarray(BASE[::4, ::4])
    lost = {
        "flag.tif": (small, {"subfiletype": 1, "resolution": (5000, 5000), "resolutionunit": "CENTIMETER"}),
        "arrow.svs": (small, aperio("1200x800 (128x128) -> 300x200 JPEG/RGB Q=85")),
        "size.svs": (small, aperio("1200x800 [0,0 1200x800] (128x128) JPEG/RGB Q=85")),
    }
    for name, page in lost.items():
        with pytest.raises(UnreadableUnit, match=r"full-resolution page is missing|the header says 1200 x 800"):
            open_slide(write(tmp_path / name, page))


@pytest.mark.parametrize("factors", [(3, 10), (4, 16), (2.5, 7)])
def test_points_stay_in_place_on_every_level_of_a_strip(tmp_path, factors):
    width, height, side = 4095, 515, 24
    base = np.full((height, width, 3), 240, np.uint8)
    points = [(width - 101, height - 91), (width // 2 + 7, height // 2 + 3), (33, 47)]
    for x, y in points:
        base[y - side : y + side, x - side : x + side] = 30
    pages = [(base, {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"})]
    for k in factors:  # the mean of what each pixel of the level covers, cut off at the edge
        xs = np.minimum(((np.arange(int(width / k) * 8) + 0.5) / 8 * k).astype(int), width - 1)
        ys = np.minimum(((np.arange(int(height / k) * 8) + 0.5) / 8 * k).astype(int), height - 1)
        level = base[ys][:, xs].reshape(len(ys) // 8, 8, len(xs) // 8, 8, 3).mean((1, 3))
        pages.append((level.astype(np.uint8), {"subfiletype": 1}))
    slide = open_slide(write(tmp_path / "s.tif", *pages))
    for k in factors:
        for x, y in points:
            size = max(16, int(400 / k))
            dark = 240.0 - read_region(slide, x, y, size, 0.25 * k, mpp0=0.25).pixels[..., 0]
            dark[dark < 30] = 0
            at = np.arange(size) + 0.5 - size / 2
            assert abs((dark.sum(0) * at).sum() / dark.sum()) <= 1.5
            assert abs((dark.sum(1) * at).sum() / dark.sum()) <= 1.5


def test_one_downsample_serves_both_axes_where_it_misplaces_nothing(tmp_path):
    class Shapes:
        level_shapes = ((4443, 3567), (2221, 1783), (8000, 100))
        level_downsamples = (1.0, (4443 / 2221 + 3567 / 1783) / 2, 2.0)

    both = axis_downsamples(Shapes())
    assert both[0] == (1.0, 1.0) and both[1] == (Shapes.level_downsamples[1],) * 2
    assert both[2] == (4443 / 8000, 3567 / 100)
