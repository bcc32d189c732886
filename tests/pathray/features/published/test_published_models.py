"""Published encoders: features from an imported file are those of the same weights in plain torch, in float64."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pathray
from pathray.errors import UserError
from pathray.features.encoder import EncoderSpec
from pathray.features.published.convert import empty
from pathray.features.published.importing import Given, read_encoder
from pathray.features.published.models import MODELS, model_of
from pathray.features.published.names import rules_of
from pathray.store.artifact import EncoderArtifact, describe, load_network
from tests.builders.published import pixels, plain_features, random_weights, shrink, tiny_row

NAMES = [row.name for row in MODELS]
WIDTHS = {
    "uni": 1024, "uni2h": 1536, "virchow": 2560, "virchow2": 2560, "h_optimus_0": 1536, "h_optimus_1": 1536,
    "h0_mini": 768, "phikon_v2": 1024, "gigapath": 1536, "conch": 512,
}  # fmt: skip
MILLIONS = {
    "uni": 303, "uni2h": 681, "virchow": 631, "virchow2": 631, "h_optimus_0": 1135, "h_optimus_1": 1135,
    "h0_mini": 86, "phikon_v2": 303, "gigapath": 1135,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


def import_file(folder, name, given=None, **changes):
    """The artifact of a tiny file of that model."""
    row = tiny_row(name)
    weights = random_weights(row) if given is None else given
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    read_encoder(str(folder / "model.safetensors"), Given(model=name, **changes)).save(str(folder / "encoder"))
    return str(folder / "encoder"), row, weights


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_published_model(small, tmp_path, name):
    path, row, weights = import_file(tmp_path, name)
    images = pixels(row)
    found = pathray.load_encoder(path).embed(images)
    expected = plain_features(row, weights, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - expected[0]).max() > 1e-2, "features that do not depend on the image prove nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_network_takes_every_parameter_of_the_published_shapes(name):
    row = model_of(name)
    with torch.device("meta"):
        own = {key: tuple(value.shape) for key, value in empty(row).state_dict().items()}
        made = {r.target: tuple(r.make(*(torch.zeros(s) for _, s in r.sources)).shape) for r in rules_of(row)}
    assert made == own
    sizes = {source for rule in rules_of(row) for source in rule.sources}
    if name in MILLIONS:
        assert round(sum(torch.Size(shape).numel() for _, shape in sizes) / 1e6) == MILLIONS[name]
    pooled = row.pool["dim"] if row.pool else row.dim * (2 if row.pooling == "cls+mean" else 1)
    assert pooled == WIDTHS[name]


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_loads_to_the_same_bits(small, tmp_path, name):
    path, row, weights = import_file(tmp_path, name)
    read = read_encoder(str(tmp_path / "model.safetensors"), Given(model=name))
    loaded, _ = load_network(path)
    assert loaded.state_dict().keys() == read.network.state_dict().keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, read.network.state_dict()[key]), key


def test_an_artifact_says_where_it_is_from_and_how_images_look(small, tmp_path):
    path, row, _ = import_file(tmp_path, "virchow2")
    found = describe(path)
    assert found["preprocessing"] == {
        "layout": "NCHW", "mean": list(row.mean), "std": list(row.std), "range": [0, 1], "size": row.size, "mpp": 0.5,
        "interpolation": "bicubic", "pooling": "cls+mean",
    }  # fmt: skip
    about = found["provenance"]
    assert about["model"] == "virchow2" and about["hub"] == "paige-ai/Virchow2" and "CC-BY-NC-ND" in about["licence"]
    import hashlib

    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert about["files"] == {"model.safetensors": digest}
    assert EncoderSpec.of("e", path).dim("auto") == 48


def test_the_name_does_not_change_the_identity_but_the_weights_do(small, tmp_path):
    first = EncoderSpec.of("a", import_file(tmp_path / "a", "uni")[0]).identity()
    again = EncoderSpec.of("b", import_file(tmp_path / "b", "uni", source="elsewhere", licence="mine")[0]).identity()
    other = random_weights(tiny_row("uni"))
    other["norm.bias"][0] += 1e-3
    changed = EncoderSpec.of("c", import_file(tmp_path / "c", "uni", other)[0]).identity()
    assert first == again and first != changed
    coarse = EncoderSpec.of("d", import_file(tmp_path / "d", "uni", mpp=1.0)[0]).identity()
    assert coarse != first and coarse["sha256"] == first["sha256"]


def test_another_pooling_may_be_asked_for(small, tmp_path):
    path, row, weights = import_file(tmp_path, "virchow2")
    images = pixels(row)
    both = pathray.load_encoder(path).embed(images)
    np.testing.assert_allclose(pathray.load_encoder(path, pooling="cls").embed(images), both[:, :24], atol=1e-6)
    np.testing.assert_allclose(pathray.load_encoder(path, pooling="mean").embed(images), both[:, 24:], atol=1e-6)


def test_registers_are_no_patches(small, tmp_path):
    """The mean of Virchow2 leaves out its registers; of another register the class token would be one."""
    path, row, weights = import_file(tmp_path, "virchow2")
    assert load_network(path)[0].num_prefix == 5


def test_positions_are_interpolated_to_another_size(small, tmp_path):
    path, row, weights = import_file(tmp_path, "uni", size_px=96)
    encoder = pathray.load_encoder(path)
    assert encoder.size_px == 96
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    table = weights["pos_embed"][:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    grown = torch.nn.functional.interpolate(table.double(), (6, 6), mode="bicubic", align_corners=False)
    positions = torch.cat([weights["pos_embed"][:, :1].double(), grown.flatten(2).mT], 1)
    expected = plain_features(row, {**weights, "pos_embed": positions}, images)
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"size_px.*found: 100.*multiple of 16"):
        import_file(tmp_path, "uni", size_px=100)


def test_images_are_resized_as_the_model_expects(small, tmp_path):
    from PIL import Image

    path, row, weights = import_file(tmp_path, "virchow2")
    image = np.random.default_rng(0).integers(0, 256, (75, 75, 3), np.uint8)
    brought = np.array(Image.fromarray(image).resize((row.size, row.size), Image.Resampling.BICUBIC))
    found = pathray.load_encoder(path).embed(image[None], resize=True)
    np.testing.assert_allclose(found, plain_features(row, weights, brought[None]), atol=1e-5)


def test_an_imported_vit_can_be_trained_further_and_one_with_its_own_pooling_cannot(small, tmp_path):
    vit, _ = EncoderArtifact.load(import_file(tmp_path / "a", "uni")[0])
    assert vit.config.layer_scale is not None
    with pytest.raises(UserError, match="only be used as it is"):
        EncoderArtifact.load(import_file(tmp_path / "b", "conch")[0])


@pytest.mark.parametrize(
    ("name", "meant"), [("univ1", "uni"), ("univ2", "uni2h"), ("UNI2-h", "uni2h"), ("Phikon-v2", "phikon_v2")]
)
def test_a_model_has_other_names(name, meant):
    assert model_of(name).name == meant


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no such published model.*expected: 'virchow2'"):
        model_of("virchov2")


def test_a_config_with_another_mean_is_told(small, tmp_path, caplog):
    row = tiny_row("uni")
    save_file(random_weights(row), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": list(row.std)}}))
    read_encoder(str(tmp_path), Given(model="uni"))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "config.json says mean [0.5, 0.5, 0.5]; the card of uni says (0.485, 0.456, 0.406), which is taken"
    ]
