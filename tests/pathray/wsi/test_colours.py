"""Colours are those that were written, whichever codec holds YCbCr; what is no slide of 8-bit colours is refused."""

import imagecodecs
import numpy as np
import pytest
import tifffile

from pathray.errors import UnreadableUnit, UserError
from pathray.wsi.backends import libraries
from pathray.wsi.reader import open_slide
from tests.builders.slides import tissue_image, write_slide, ycbcr

openslide = pytest.importorskip("openslide", reason="OpenSlide is the oracle here")
IMAGE = tissue_image(512, 512, seed=2)
APERIO = "Aperio Image Library v10.0.50\r\n512x512 [0,0 512x512] (256x256) J2K/YUV16 Q=70|AppMag = 40|MPP = 0.25"


def write(path, tiles=None, **options):
    data = iter(tiles) if tiles is not None else ycbcr(IMAGE)
    more = {"shape": IMAGE.shape, "dtype": np.uint8} if tiles is not None else {}
    tifffile.imwrite(path, data, tile=(256, 256), metadata=None, **more, **options)
    return str(path)


def jpeg2000_tiles(image):
    parts = [image[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    return [imagecodecs.jpeg2k_encode(np.ascontiguousarray(p), level=0, codecformat="j2k", mct=False) for p in parts]


def worst(path):
    return np.abs(open_slide(path).read_level(0, 0, 0, 512, 512).astype(int) - IMAGE).max()


@pytest.mark.parametrize("codec", [None, "deflate", "lzw", "zstd", "packbits"])
def test_ycbcr_numbers_are_colours_with_every_lossless_codec(tmp_path, codec):
    path = write(tmp_path / "s.tif", compression=codec, photometric="ycbcr", subsampling=(1, 1))
    assert worst(path) <= 2
    strips = str(tmp_path / "strips.tif")
    options = {"compression": codec, "photometric": "ycbcr", "subsampling": (1, 1)}
    tifffile.imwrite(strips, ycbcr(IMAGE), rowsperstrip=64, metadata=None, **options)
    assert worst(strips) <= 2


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_aperio_33003_holds_ycbcr_whatever_its_tag_says_as_openslide_has_it(tmp_path, photometric):
    path = write(
        tmp_path / "s.svs", jpeg2000_tiles(ycbcr(IMAGE)), compression=33003, photometric=photometric, description=APERIO
    )
    theirs = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512)))[..., :3].astype(int)
    ours = open_slide(path).read_level(0, 0, 0, 512, 512)
    assert np.abs(ours - theirs).max() <= 2 and worst(path) <= 2


def test_aperio_33005_holds_rgb_as_openslide_has_it(tmp_path):
    path = write(tmp_path / "s.svs", jpeg2000_tiles(IMAGE), compression=33005, photometric="rgb", description=APERIO)
    theirs = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512)))[..., :3]
    np.testing.assert_array_equal(open_slide(path).read_level(0, 0, 0, 512, 512), theirs)


def test_generic_jpeg_2000_tagged_ycbcr_is_converted(tmp_path):
    assert worst(write(tmp_path / "s.tif", jpeg2000_tiles(ycbcr(IMAGE)), compression=34712, photometric="ycbcr")) <= 2


GREY = np.ascontiguousarray(np.moveaxis(IMAGE, 2, 0))
KINDS = {
    "three grey pages": (GREY, {"photometric": "minisblack"}, "channels"),
    "12 bits in 16": ((IMAGE.astype(np.uint16) << 4), {"photometric": "rgb"}, "uint16"),
    "grey of 16 bits": (IMAGE[..., 0].astype(np.uint16), {"photometric": "minisblack"}, "uint16"),
    "floats": (IMAGE.astype(np.float32) / 255, {"photometric": "rgb"}, "float32"),
    "32 bits": (IMAGE.astype(np.uint32), {"photometric": "rgb"}, "uint32"),
    "CMYK": (np.dstack([IMAGE, IMAGE[..., :1]]), {"photometric": "separated"}, "SEPARATED"),
    "CIELab": (IMAGE, {"photometric": "cielab"}, "CIELAB"),
    "a palette": (IMAGE[..., 0], {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "PALETTE"),
    "five channels": (np.dstack([IMAGE, IMAGE[..., :2]]), {"photometric": "minisblack", "planarconfig": 1}, "samples"),
}


@pytest.mark.parametrize("backend", ["auto", *(library.name for library in libraries.LIBRARIES)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_is_cannot_be_overruled_by_any_library(tmp_path, kind, backend):
    pixels, options, said = KINDS[kind]
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), metadata=None, compression="deflate", **options)
    with pytest.raises(UserError, match="8-bit colours") as e:
        open_slide(str(path), backend=backend)
    assert said in str(e.value) and str(path) in str(e.value)


def with_size(jpeg, width, height):
    at = jpeg.index(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.index(b"\xff\xc2")
    return jpeg[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 9 :]


def with_size_j2k(data, width, height):
    at = data.index(b"\xff\x4f\xff\x51") + 8
    return data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]


@pytest.mark.parametrize("size", [(20_000, 20_000), (256, 600), (200, 256), (512, 256)])
@pytest.mark.parametrize("codec", ["jpeg", "jp2k", "webp"])
def test_a_tile_that_claims_another_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch, codec, size):
    tile = np.ascontiguousarray(IMAGE[:256, :256])
    if codec == "jpeg":
        good = imagecodecs.jpeg8_encode(tile, level=90)
        bad, compression, photometric = with_size(good, *size), 7, "ycbcr"
    elif codec == "jp2k":
        good = jpeg2000_tiles(IMAGE)[0]
        bad, compression, photometric = with_size_j2k(good, *size), 34712, "rgb"
    else:
        good, compression, photometric = imagecodecs.webp_encode(tile, level=90), 50001, "rgb"
        shape = (min(size[1], 900), min(size[0], 900), 3)
        bad = imagecodecs.webp_encode(np.zeros(shape, np.uint8), level=90)
    path = write(tmp_path / "s.tif", [good, bad, good, good], compression=compression, photometric=photometric)
    slide = open_slide(path)
    assert slide.backend == "tiff" and slide.read_level(0, 10, 10, 50, 50).shape == (50, 50, 3)
    with pytest.raises(UnreadableUnit, match="pixels in a tile of 256 x 256") as e:
        slide.read_level(0, 300, 10, 50, 50)
    assert e.value.reason == "decode"


def test_damage_named_by_the_direct_path_is_not_overruled_by_a_library(tmp_path):
    path = write_slide(tmp_path / "whole.svs", kind="svs")
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[2].offset
    cases = {"empty.svs": b"", "half.svs": whole[: len(whole) // 2]}
    cases["table.svs"] = whole[:at] + bytes(64) + whole[at + 64 :]
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for backend in ("auto", "fastslide"):
            with pytest.raises(UnreadableUnit) as e:
                open_slide(str(tmp_path / name), backend=backend)
            assert name in str(e.value)


def test_a_text_file_is_no_slide_whatever_its_name(tmp_path):
    (tmp_path / "text.svs").write_text("this is not an image\n" * 20)
    with pytest.raises(UserError, match="no backend reads this slide"):
        open_slide(str(tmp_path / "text.svs"))
