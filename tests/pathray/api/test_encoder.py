"""Embedding gives the numbers that extraction writes, for slides, files and arrays."""

import numpy as np
import pytest
import torch
from PIL import Image

import pathray
from pathray.device import Device
from pathray.errors import MissingFile, UserError
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.features.images import ImageJob, ImageSettings, extract_images
from pathray.features.read_bags import read_bag
from pathray.features.slides import SlideJob, SlideSettings, extract_slide
from pathray.features.tables import read_table
from pathray.wsi.tiling import TileSpec
from tests.builders.encoders import plain_features, write_encoder
from tests.builders.slides import write_mask, write_slide

CPU = Device.of("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A slide, an encoder with a class token, and eight images."""
    folder = tmp_path_factory.mktemp("embed")
    write_slide(folder / "s.tiff", codec="none")
    write_encoder(folder / "enc", cls=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    paths = [folder / f"{i}.png" for i in range(8)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return folder, pixels, paths


def extracted(folder, tiles, mask="", **settings):
    """The bag that extraction writes."""
    spec = EncoderSpec.of("enc", str(folder / "enc"))
    how = {"pooling": settings.get("pooling", "mean")}
    models = {"enc": load_encoder(spec, CPU, **how)}
    job = SlideJob("s", str(folder / "s.tiff"), mask, bags=(("enc", str(folder / "bag.h5")),))
    extract_slide(job, {"enc": spec}, models, SlideSettings(tiles, **settings), CPU)
    return read_bag(str(folder / "bag.h5"))


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ({}, {}),
        ({"overlap_px": 8, "min_tissue_fraction": 0.6, "edges": True}, {"pooling": "cls+mean"}),
        ({"size_px": 48, "mpp": 0.8}, {"resize": True, "batch_size": 7}),
    ],
)
def test_a_slides_features_are_those_of_its_bag(world, spec, settings):
    folder = world[0]
    encoder = pathray.load_encoder(folder / "enc", device="cpu", pooling=settings.get("pooling", "mean"))
    own = {key: value for key, value in settings.items() if key != "pooling"}
    with pathray.open_slide(folder / "s.tiff") as slide:
        found = encoder.embed(slide, tiles=encoder.tile_spec(**spec), **own)
    expected = extracted(folder, TileSpec(**{"size_px": 32, "mpp": 1.0, **spec}), **settings)
    assert np.array_equal(found.features, expected.features) and found.features.dtype == np.float32
    assert np.array_equal(found.coords, expected.coords) and len(found.coords) > 8
    assert found.features.shape[1] == encoder.dim and found.tile == expected.tile


def test_a_mask_says_which_tiles_there_are(world):
    folder = world[0]
    mask = np.zeros((70, 90), np.uint8)
    mask[20:50, 30:60] = 255
    path = str(write_mask(folder / "mask.png", mask))
    encoder = pathray.load_encoder(folder / "enc", device="cpu")
    expected = extracted(folder, TileSpec(32, 1.0), path)
    with pathray.open_slide(folder / "s.tiff") as slide:
        of_file, of_array = encoder.embed(slide, mask=path), encoder.embed(slide, mask=mask)
        of_tissue = encoder.embed(slide, mask=pathray.tissue(slide))
        plain = encoder.embed(slide)
    for found in (of_file, of_array):
        assert np.array_equal(found.coords, expected.coords) and np.array_equal(found.features, expected.features)
    assert np.array_equal(of_tissue.coords, plain.coords) and len(plain.coords) > len(expected.coords)


def test_image_files_give_the_features_of_the_images_table(world):
    folder, pixels, paths = world
    spec = EncoderSpec.of("enc", str(folder / "enc"))
    names = tuple(map(str, paths))
    job = ImageJob(names, names, ("",) * 8, tables=(("enc", str(folder / "t.parquet")),))
    extract_images(job, {"enc": spec}, {"enc": load_encoder(spec, CPU)}, ImageSettings(batch_size=3), CPU)
    encoder = pathray.load_encoder(folder / "enc", device="cpu")
    found = encoder.embed(paths, batch_size=3)
    assert np.array_equal(found, read_table(str(folder / "t.parquet")).features)
    np.testing.assert_allclose(found, plain_features(str(folder / "enc"), pixels), atol=1e-5)
    np.testing.assert_allclose(encoder.embed(names[0]), found[:1], atol=1e-5)
    assert encoder.embed([]).shape == (0, 24)


def test_arrays_of_numpy_and_torch_give_what_their_files_give(world):
    folder, pixels, paths = world
    encoder = pathray.load_encoder(folder / "enc", device="cpu")
    files, of_numpy, of_torch = (encoder.embed(x) for x in (paths, pixels, torch.from_numpy(pixels)))
    assert isinstance(of_numpy, np.ndarray) and isinstance(of_torch, torch.Tensor)
    assert np.array_equal(of_numpy, files) and np.array_equal(of_torch.numpy(), files)
    assert of_torch.dtype == torch.float32 and encoder.embed(pixels[:0]).shape == (0, 24)


def test_arrays_of_another_size_are_resized_only_when_asked(world):
    folder = world[0]
    encoder = pathray.load_encoder(folder / "enc", device="cpu")
    large = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    with pytest.raises(UserError, match="patch size"):
        encoder.embed(large)
    twice = np.repeat(np.repeat(world[1][:2], 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(encoder.embed(twice, resize=True), encoder.embed(world[1][:2]), atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 3, 32, 32), np.uint8), np.zeros((2, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8), 3],
)
def test_what_is_no_image_is_refused(world, images):
    encoder = pathray.load_encoder(world[0] / "enc", device="cpu")
    with pytest.raises(UserError, match="not images") as error:
        encoder.embed(images)
    assert "uint8 [N, H, W, 3]" in error.value.where["expected"]


def test_an_image_that_cannot_be_read_is_named(world):
    folder, _, paths = world
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be embedded") as error:
        pathray.load_encoder(folder / "enc", device="cpu").embed([*paths, folder / "broken.png"])
    assert error.value.where["file"] == str(folder / "broken.png") and error.value.where["row"] == 8


def test_a_slide_that_cannot_be_embedded_is_refused(world):
    folder = world[0]
    encoder = pathray.load_encoder(folder / "enc", device="cpu")
    with pathray.open_slide(folder / "s.tiff", mpp=4.0) as slide, pytest.raises(UserError, match="too coarse"):
        encoder.embed(slide)
    with pathray.open_slide(folder / "s.tiff") as slide:
        with pytest.raises(UserError, match="no tile holds enough tissue"):
            encoder.embed(slide, mask=np.zeros((7, 9)))
        with pytest.raises(UserError, match="not a mask"):
            encoder.embed(slide, mask=np.zeros((7, 9, 3)))
    with pytest.raises(UserError, match="only a slide"):
        encoder.embed(world[1], tiles=TileSpec(32, 1.0))


def test_an_encoder_without_a_spacing_needs_one(tmp_path, world):
    write_encoder(tmp_path / "e", mpp=None)
    encoder = pathray.load_encoder(tmp_path / "e", device="cpu")
    with pytest.raises(UserError, match="does not say the spacing") as error:
        encoder.tile_spec()
    assert error.value.where["key"] == "mpp"
    assert encoder.tile_spec(mpp=2.0) == TileSpec(32, 2.0)


def test_what_is_no_encoder_is_refused(tmp_path, world):
    with pytest.raises(MissingFile):
        pathray.load_encoder(tmp_path / "none")
    with pytest.raises(UserError) as error:
        pathray.load_encoder(world[0] / "enc", device="cpu", pooling="max")
    assert error.value.where["expected"] == "auto or mean or cls or cls+mean"
