"""Images are opened in one place: known formats by content, bounded, on white; masks by colour and not by alpha."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathray.errors import UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.files import images as image_files
from pathray.files.images import MAX_PIXELS, ImageError, open_image
from pathray.wsi.reader import open_mask

ROOT = Path(__file__).parents[3]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
TISSUE = np.zeros((60, 80), np.uint8)
TISSUE[10:50, 20:70] = 255


def test_no_other_module_opens_images_with_pillow():
    files = [
        p
        for top in ("pathray", "ijepath", "adios", "regression", "ray_jobs", "demo")
        for p in (ROOT / top).rglob("*.py")
    ]
    users = [str(p.relative_to(ROOT)) for p in files if re.search(r"\bImage\.open\(", p.read_text())]
    assert users == ["pathray/files/images.py"]


@pytest.mark.parametrize(
    "content", [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(40), b"%PDF-1.4\n", b"\x00\x00\x00\x00WMF"]
)
def test_formats_that_start_programs_are_not_images_whatever_their_name(tmp_path, monkeypatch, content):
    called, bin_folder = tmp_path / "CALLED", tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "gs").write_text(f"#!/bin/sh\necho >> {called}\nexit 1\n")
    (bin_folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableUnit, match="unknown image format"):
        read_image(str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="unknown image format"):
        open_mask(str(tmp_path / "a.png"))
    assert not called.exists()


def test_large_images_are_bounded_by_our_own_number_of_pixels(tmp_path):
    Image.new("1", (14_200, 14_200)).save(tmp_path / "mask.png")  # above Pillow's bound
    assert open_mask(str(tmp_path / "mask.png")).read_level(0, 14_000, 14_000, 9, 9).max() == 0
    side = int(MAX_PIXELS**0.5) + 1
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    with pytest.raises(ImageError, match="image too large"):
        open_image(content.getvalue())


def test_the_bound_of_other_code_that_opens_images_is_never_lowered(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="image too large"):
        content = io.BytesIO()
        Image.new("1", (90, 90)).save(content, "PNG")
        open_image(content.getvalue())
    assert Image.MAX_IMAGE_PIXELS is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(ImageError):
        open_image(content.getvalue())
    assert Image.MAX_IMAGE_PIXELS == 20_000


def rgba(mode):
    picture = np.dstack([np.full((40, 40, 3), (200, 60, 90), np.uint8), np.full((40, 40), 255, np.uint8)])
    picture[:20, :20] = (0, 0, 0, 0)
    image = Image.fromarray(picture, "RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = int(np.asarray(image)[0, 0])
    return image if mode in ("RGBA", "P") else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "tif"), ("RGBA", "webp")]
)
def test_transparent_parts_of_images_are_white(tmp_path, mode, suffix):
    path, image = tmp_path / f"a.{suffix}", rgba(mode)
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels = read_image(str(path))
    assert pixels[5, 5].tolist() == [255, 255, 255] and pixels[30, 30].max() < 255


def share(path):
    return open_mask(str(path)).read_level(0, 0, 0, 80, 60) > 0


@pytest.mark.parametrize(
    "options", [{}, {"compression": "lzw"}, {"tile": (32, 32)}, {"compression": "deflate", "tile": (16, 16)}]
)
@pytest.mark.parametrize("samples", [2, 4])
def test_alpha_says_nothing_of_tissue(tmp_path, samples, options):
    colours = np.dstack([TISSUE] * (samples - 1))
    pixels = np.dstack([colours, np.full(TISSUE.shape, 255, np.uint8)])
    photometric = "rgb" if samples == 4 else "minisblack"
    more = {"photometric": photometric, "extrasamples": ["unassalpha"], "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **more, **options)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(share(tmp_path / name), TISSUE > 0)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
@pytest.mark.parametrize("order", ["black first", "white first", "web"])
def test_black_and_white_palettes_count_by_colour(tmp_path, suffix, order):
    if order == "web":
        image = Image.fromarray(np.dstack([TISSUE] * 3)).convert("P")
    else:
        white = int(order == "black first")
        image = Image.fromarray(np.where(TISSUE > 0, white, 1 - white).astype(np.uint8))
        image.putpalette([255 * (i == white) for i in range(2) for _ in range(3)] + [0] * 762)
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(share(tmp_path / f"a.{suffix}"), TISSUE > 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_label_maps_count_by_index_and_contradictions_are_refused(tmp_path, suffix):
    labels = np.zeros((60, 80), np.uint8)
    labels[10:30], labels[40:50] = 1, 2
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 220, 30, 30, 30, 200, 30] + [0] * 759)
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(open_mask(str(tmp_path / f"a.{suffix}")).read_level(0, 0, 0, 80, 60), labels)
    image.putpalette([220, 30, 30, 0, 0, 0, 30, 200, 30] + [0] * 759)
    image.save(tmp_path / f"b.{suffix}")
    with pytest.raises((UserError, UnreadableUnit), match="could be the background"):
        open_mask(str(tmp_path / f"b.{suffix}")).read_level(0, 0, 0, 80, 60)


@pytest.mark.parametrize("quality", [50, 80, 95])
def test_ringing_of_a_lossy_mask_is_not_tissue(tmp_path, quality):
    Image.fromarray(TISSUE).save(tmp_path / "a.jpg", quality=quality)
    tiff = {"compression": "jpeg", "compressionargs": {"level": quality}, "photometric": "minisblack", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", TISSUE, tile=(32, 32), **tiff)
    for name in ("a.jpg", "a.tif"):
        np.testing.assert_array_equal(share(tmp_path / name), TISSUE > 0)
