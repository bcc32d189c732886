"""Mask models: shapes as published, a softmax, whole images only, nothing of a batch-mate, loadable elsewhere."""

import json

import pytest
import torch

from adios import artifact
from adios.mask_models import (
    KINDS,
    MaskModel,
    MaskModelConfig,
    UNet,
    ViTUNet,
    _repeat_pixels,
    build_mask_model,
    skip_widths,
)
from pathray.errors import MissingFile, UserError

SMALL = {"image_size": 32, "dim": 32, "depth": 4, "heads": 2}
MEAN, STD = (0.68, 0.56, 0.72), (0.16, 0.17, 0.14)


def model(kind: str, **changes: object) -> MaskModel:
    return build_mask_model(MaskModelConfig(kind=kind, **{**SMALL, **changes}), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_a_softmax_over_masks_at_every_pixel(kind):
    masks = model(kind, num_masks=4).masks(torch.randn(2, 3, 32, 32))
    assert masks.shape == (2, 4, 32, 32) and masks.dtype == torch.float32
    assert float(masks.detach().min()) >= 0
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, 32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_does_not_depend_on_batch_mates(kind):
    net, images = model(kind, drop_path=0.0), torch.randn(3, 3, 32, 32)  # in training mode
    alone = torch.cat([net.masks(image[None]) for image in images])
    torch.testing.assert_close(net.masks(images), alone, atol=1e-5, rtol=1e-4)


def test_the_unet_of_a_224_pixel_image_has_the_published_levels():
    net = UNet(MaskModelConfig(kind="adios"))
    assert [block[0].weight.shape[:2] for block in net.down] == [
        (32, 3),
        (32, 32),
        (32, 32),
        (64, 32),
        (64, 64),
        (64, 64),
    ]
    assert [block[0].weight.shape[:2] for block in net.up] == [
        (64, 128), (64, 128), (32, 128), (32, 64), (32, 64), (32, 64)
    ]  # fmt: skip
    assert net.mlp[0].weight.shape == (128, 64 * 7 * 7) and net.head.weight.shape == (3, 32, 1, 1)


def test_the_unet_doubles_by_repeating_pixels():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(_repeat_pixels(x), torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


def test_skips_of_the_vit_unet_grow_with_its_width():
    assert [skip_widths(d) for d in (192, 511, 512, 1023, 1024)] == [(256, 128, 256)] * 2 + [(512, 256, 512)] * 2 + [
        (768, 384, 768)
    ]
    net = ViTUNet(MaskModelConfig())
    assert net.layers == [3, 6, 9, 12] and net.image[1][0].weight.shape[:2] == (64, 32)
    assert len(net.vit.blocks) == 12 and net.vit.blocks[-1].drop_path.rate == pytest.approx(0.1)


def test_every_inner_feature_of_the_vit_unet_reaches_the_masks():
    net, images = model("vit_unet").eval(), torch.randn(1, 3, 32, 32)
    (net.masks(images)[:, 0] ** 2).sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.endswith("qkv.bias") for name in silent), silent


@pytest.mark.parametrize(("kind", "size", "expected"), [("adios", 36, 8), ("vit_unet", 40, 16), ("adios", 8, "")])
def test_images_that_are_not_whole_are_refused(kind, size, expected):
    with pytest.raises(UserError, match=rf"image_size.*{size}.*{expected}"):
        MaskModelConfig(kind=kind, image_size=size)


def test_an_image_of_another_size_is_taken_by_the_vit_unet_and_refused_where_it_cannot_be():
    assert model("vit_unet").masks(torch.randn(1, 3, 48, 64)).shape == (1, 3, 48, 64)
    with pytest.raises(UserError, match="patch size"):
        model("vit_unet").masks(torch.randn(1, 3, 40, 64))
    with pytest.raises(UserError, match="takes one size"):
        model("adios").masks(torch.randn(1, 3, 64, 64))


def test_one_mask_is_no_choice():
    with pytest.raises(UserError, match="num_masks"):
        MaskModelConfig(num_masks=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_mask_model_gives_the_masks_of_the_saved_one(tmp_path, kind):
    net = model(kind)
    artifact.save(str(tmp_path / "m"), net, MEAN, STD, {"images_seen": 64})
    loaded = artifact.load(str(tmp_path / "m"))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    scaled = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    expected = net.eval().masks(scaled.permute(0, 3, 1, 2).float())
    before = torch.random.get_rng_state()
    torch.testing.assert_close(loaded.masks(pixels), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"
    assert loaded.config == net.config and loaded.facts == {"images_seen": 64}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_an_altered_missing_or_newer_mask_model_is_refused(tmp_path):
    folder = tmp_path / "m"
    with pytest.raises(MissingFile, match="no mask model here"):
        artifact.load(str(folder))
    artifact.save(str(folder), model("vit_unet"), MEAN, STD, {})
    description = json.loads((folder / artifact.DESCRIPTION).read_text())
    (folder / artifact.DESCRIPTION).write_text(json.dumps(description | {"schema_version": 2}))
    with pytest.raises(UserError, match="newer version"):
        artifact.load(str(folder))
    (folder / artifact.DESCRIPTION).write_text(json.dumps(description | {"sha256": "0"}))
    with pytest.raises(UserError, match="altered"):
        artifact.load(str(folder))
