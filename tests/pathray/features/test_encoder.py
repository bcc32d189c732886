"""An artifact as a function of pixels, against plain tensor arithmetic of one image at a time."""

import numpy as np
import pytest
import torch

from pathray.device import Device
from pathray.errors import MissingFile, UserError
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.store.artifact import EncoderArtifact
from tests.builders.encoders import MEAN, STD, write_encoder

CPU = Device.of("cpu")


def plain(vit, pixels, pooling):
    """One image at a time: preprocessing in numpy float64, tokens, pooling by hand."""
    out = []
    for image in pixels:
        x = (image.astype(np.float64) / 255 - MEAN) / STD
        tokens = vit(torch.from_numpy(x).float().permute(2, 0, 1)[None])[0].double().numpy()
        prefix = int(vit.config.cls_token) + vit.config.registers
        mean = tokens[prefix:].mean(axis=0)
        out.append({"mean": mean, "cls": tokens[0], "cls+mean": np.concatenate([tokens[0], mean])}[pooling])
    return np.array(out)


def pixels(count=5, height=32, width=32):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


def features(encoder, images):
    return encoder(CPU.to_device({"x": images})["x"]).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "cls+mean"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_features_are_the_pooled_tokens_of_the_preprocessed_pixels(tmp_path, pooling, size):
    path = write_encoder(tmp_path / "e", cls=True)
    spec = EncoderSpec.of("e", path)
    found = features(load_encoder(spec, CPU, pooling=pooling), pixels(5, *size))
    assert found.dtype == np.float32 and found.shape == (5, spec.dim(pooling))
    np.testing.assert_allclose(found, plain(EncoderArtifact.load(path)[0], pixels(5, *size), pooling), atol=1e-5)
    assert np.abs(found - found[0]).max() > 1e-2, "features that do not depend on the image prove nothing"


def test_a_feature_does_not_depend_on_its_batch(tmp_path):
    encoder = load_encoder(EncoderSpec.of("e", write_encoder(tmp_path / "e")), CPU)
    whole = features(encoder, pixels(13))
    for size in (1, 4, 5):
        parts = [features(encoder, pixels(13)[i : i + size]) for i in range(0, 13, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_an_encoder_says_what_its_features_depend_on(tmp_path):
    first = EncoderSpec.of("a", write_encoder(tmp_path / "a"))
    assert first.identity() == EncoderSpec.of("b", write_encoder(tmp_path / "b")).identity()
    for change in ({"seed": 1}, {"size": 64}, {"mpp": 0.5}, {"cls": True}):
        assert EncoderSpec.of("a", write_encoder(tmp_path / "c", **change)).identity() != first.identity()
    assert (first.size_px, first.mpp, first.dim("mean")) == (32, 1.0, 24)


def test_images_that_are_not_whole_patches_are_refused_unless_resized(tmp_path):
    spec = EncoderSpec.of("e", write_encoder(tmp_path / "e"))
    assert spec.input_px(64, 48, resize=False) == (64, 48) and spec.input_px(50, 50, resize=True) == (32, 32)
    with pytest.raises(UserError, match=r"patch size.*50 x 48 pixels.*resize=true for 32"):
        spec.input_px(50, 48, resize=False)
    with pytest.raises(UserError, match="square images"):
        spec.input_px(64, 48, resize=True)


def test_preprocessing_that_is_not_understood_is_refused_not_left_out(tmp_path):
    EncoderSpec.of("e", write_encoder(tmp_path / "e", extra={"normalise_brightness": False}))
    with pytest.raises(UserError, match=r"does not support.*normalise_brightness"):
        EncoderSpec.of("e", write_encoder(tmp_path / "e", extra={"normalise_brightness": True}))


def test_an_encoder_of_anything_else_than_rgb_images_is_refused(tmp_path):
    write_encoder(tmp_path / "v", in_channels=1, img_size=(8, 32, 32), patch_size=(4, 16, 16), dim=24)
    with pytest.raises(UserError, match="not an encoder of RGB images"):
        EncoderSpec.of("v", str(tmp_path / "v"))


def test_pooling_a_class_token_that_is_not_there_is_refused(tmp_path):
    spec = EncoderSpec.of("e", write_encoder(tmp_path / "e"))
    with pytest.raises(UserError, match="no class token"):
        load_encoder(spec, CPU, pooling="cls")


def test_a_folder_without_an_encoder_and_one_that_changed_under_way_are_told_apart(tmp_path):
    with pytest.raises(MissingFile, match="no encoder here"):
        EncoderSpec.of("e", str(tmp_path))
    spec = EncoderSpec.of("e", write_encoder(tmp_path / "e"))
    write_encoder(tmp_path / "e", seed=1)
    with pytest.raises(UserError, match="replaced during the run"):
        load_encoder(spec, CPU)
