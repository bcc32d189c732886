import numpy as np
import pytest
import tifffile

from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.files import images as image_files
from pathray.wsi.backends.source import LocalFile
from pathray.wsi.reader import open_mask
from tests.builders.slides import truncate_tile, write_mask


@pytest.fixture
def drawn():
    y, x = np.mgrid[0:600, 0:800]
    return (((x - 300) ** 2 + (y - 250) ** 2 < 180**2) * 255).astype(np.uint8)


def check(mask, drawn):
    h, w = drawn.shape
    assert mask.level_shapes[0] == (w, h)
    np.testing.assert_array_equal(mask.read_level(0, 0, 0, w, h), drawn)
    np.testing.assert_array_equal(mask.read_level(0, 123, 77, 300, 299), drawn[77:376, 123:423])
    box = mask.read_level(0, -20, -30, 60, 70)
    assert box.shape == (70, 60) and box.dtype == np.uint8 and not box[:30].any() and not box[:, :20].any()
    assert not mask.read_level(0, w, 0, 10, 10).any()


@pytest.mark.parametrize("name", ["m.png", "m.bmp", "m.tif", "m.tiff"])
def test_images_and_tiffs_give_the_mask_that_was_drawn(tmp_path, drawn, name):
    mask = open_mask(str(write_mask(tmp_path / name, drawn, mpp=4.0)))
    check(mask, drawn)
    assert mask.backend == ("tiff" if "tif" in name else "image")
    assert mask.mpp == (pytest.approx(4.0) if "tif" in name else None)


def test_jpeg_masks_are_read(tmp_path, drawn):
    mask = open_mask(str(write_mask(tmp_path / "m.jpg", drawn)))
    assert ((mask.read_level(0, 0, 0, 800, 600) > 127) == (drawn > 127)).mean() > 0.999


def test_mask_pyramids_give_all_their_levels(tmp_path, drawn):
    mask = open_mask(str(write_mask(tmp_path / "m.tif", drawn, downsamples=(1, 2, 4), codec="lzw")))
    assert mask.level_shapes == ((800, 600), (400, 300), (200, 150))
    np.testing.assert_array_equal(mask.read_level(2, 0, 0, 200, 150), drawn[::4, ::4])


@pytest.mark.parametrize("codec", ["none", "deflate"])
def test_striped_tiffs_are_read_strip_by_strip(tmp_path, drawn, codec, monkeypatch):
    """A single huge uncompressed strip, as tifffile.imwrite writes a mask, is not read whole for a small box."""
    path = write_mask(tmp_path / "m.tif", np.kron(drawn, np.ones((4, 2), np.uint8)), tile=None, codec=codec)
    mask, fetched = open_mask(str(path)), []
    read_many = LocalFile.read_many
    monkeypatch.setattr(LocalFile, "read_many", lambda s, r: fetched.extend(n for _, n in r) or read_many(s, r))
    np.testing.assert_array_equal(
        mask.read_level(0, 500, 1000, 40, 30), np.kron(drawn, np.ones((4, 2)))[1000:1030, 500:540]
    )
    assert 0 < sum(fetched) < 600_000  # of 3,840,000 pixels
    check(mask, np.kron(drawn, np.ones((4, 2), np.uint8)))


def test_labels_wider_than_a_byte_and_bits_become_zero_and_one(tmp_path, drawn):
    expected = (drawn > 0).astype(np.uint8)
    for name, array in (("u16", expected * np.uint16(256)), ("f32", expected * np.float32(0.5)), ("bool", drawn > 0)):
        for tile in (None, (128, 128)):
            path = tmp_path / f"{name}{tile is None}.tif"
            tifffile.imwrite(path, array, tile=tile, compression="deflate" if tile else None)
            try:
                check(open_mask(str(path)), expected)
            except UserError as e:  # packed bits in one block have no rows of whole bytes
                assert name == "bool" and tile is None and "tiled" in str(e)


def test_the_stored_numbers_count_also_where_zero_is_declared_white(tmp_path, drawn):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, drawn, tile=(128, 128), photometric="miniswhite", compression="deflate")
    check(open_mask(str(path)), drawn)


def test_colour_masks_take_their_largest_channel_without_alpha(tmp_path, drawn):
    from PIL import Image

    rgba = np.zeros((*drawn.shape, 4), np.uint8)
    rgba[..., 1], rgba[..., 3] = drawn, 255
    Image.fromarray(rgba).save(tmp_path / "m.png")
    check(open_mask(str(tmp_path / "m.png")), drawn)
    tifffile.imwrite(tmp_path / "m.tif", rgba[..., :3], tile=(128, 128), photometric="rgb", compression="lzw")
    check(open_mask(str(tmp_path / "m.tif")), drawn)


def test_palette_png_masks_give_their_labels(tmp_path, drawn):
    from PIL import Image

    labels = (drawn > 0).astype(np.uint8) * 3
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([255, 255, 255] * 256)
    picture.save(tmp_path / "m.png")
    check(open_mask(str(tmp_path / "m.png")), labels)


def test_errors_say_whose_fault_it_is(tmp_path, drawn, monkeypatch):
    with pytest.raises(MissingFile):
        open_mask(str(tmp_path / "no.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png"):
        open_mask(str(tmp_path / "text.png"))
    path = write_mask(tmp_path / "m.tif", drawn)
    truncate_tile(path, 0, 5)
    with pytest.raises(UnreadableUnit, match="level 0, tile 5"):
        open_mask(str(path)).read_level(0, 0, 0, 800, 600)
    path = write_mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, drawn.shape, np.uint8))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnreadableUnit):
        open_mask(str(path)).read_level(0, 0, 0, 800, 600)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="tiled TIFF"):
        open_mask(str(write_mask(tmp_path / "big.png", drawn)))
