"""A probe sees what pretraining saw: grid, normalisation and scale of the artifact, whatever they are."""

import numpy as np
import pytest
import torch

from oct.augment import Volumes
from oct.dicom.resample import read_volume
from oct.downstream.features import Compute, FeatureSource, load_features, missing_rows
from oct.downstream.preprocess import Preprocessing, load_encoder, patch_tokens, pool_tokens
from oct.indexing.index_file import read_index
from oct.sections import AugmentConfig
from oct.settings import preprocessing
from oct.volume import Grid
from pathray.errors import UserError
from pathray.store.artifact import EncoderArtifact
from pathray.wsi.backends.source import read_source
from tests.builders.oct.labelled import SIZE, SPACING_MM, small_run, write_oct_encoder


def features_of(labelled, encoder, tmp_path, pool=None, weights="pretrained", number=2):
    index = read_index(f"{labelled}/volumes.parquet")
    rows = index.accepted.to_pylist()[:number]
    source = FeatureSource(encoder, weights, 0, pool, index.root, str(tmp_path / "features"))
    make = Compute(source, "cpu", 1)()
    assert [make(row) for row in missing_rows(source, rows)] == [""] * number
    return rows, index.root, load_features(source, rows, {})


def test_features_are_those_of_the_pretrainings_own_pipeline(labelled, tmp_path):
    """The encoder applied to what oct.augment gives validation volumes of the run."""
    rows, root, found = features_of(labelled, f"{labelled}/encoder", tmp_path)
    config, encoder = small_run(), EncoderArtifact.load(f"{labelled}/encoder")[0]
    for i, row in enumerate(rows):
        sampled, _ = read_volume(f"{root}/{row['path']}", config.data.grid)
        image, inside = torch.from_numpy(sampled.image)[None], torch.from_numpy(sampled.inside)[None]
        tokens = encoder(Volumes(AugmentConfig(), config.data.spacing_mm)(image, inside))
        np.testing.assert_allclose(found.mean[i], tokens[0].mean(0).numpy(), atol=1e-6)


def test_an_artifact_with_other_inputs_is_probed_with_those(labelled, tmp_path):
    """Another grid, and a mean and deviation on top: against NumPy in float64."""
    other = {"size": [4, 16, 48], "spacing_mm": [0.4, 0.04, 0.03], "mean": [0.3], "std": [1.7]}
    encoder = write_oct_encoder(tmp_path / "encoder", **other)
    rows, root, found = features_of(labelled, encoder, tmp_path)
    vit = EncoderArtifact.load(encoder)[0].double()
    for i, row in enumerate(rows):
        sampled, _ = read_volume(f"{root}/{row['path']}", Grid((4, 16, 48), (0.4, 0.04, 0.03)))
        part = tuple(slice(first, last) for first, last in sampled.inside)
        inside = sampled.image[part].astype(np.float64)
        x = np.zeros(sampled.image.shape)
        x[part] = ((inside - inside.mean()) / inside.std() - 0.3) / 1.7
        tokens = vit(torch.from_numpy(x)[None, None])
        np.testing.assert_allclose(found.mean[i], tokens[0].mean(0).numpy(), atol=1e-5)
    usual = features_of(labelled, f"{labelled}/encoder", tmp_path)[2]
    assert np.abs(usual.mean - found.mean).max() > 0.01


@pytest.mark.parametrize(
    ("key", "value"), [("normalise", "slice"), ("grey", 255), ("layout", "NCHW"), ("normalise", None)]
)
def test_an_encoder_that_expects_something_unknown_is_refused(tmp_path, key, value):
    encoder = write_oct_encoder(tmp_path / "encoder", **{key: value})
    with pytest.raises(UserError, match=f"not an encoder of OCT volumes.*preprocessing.{key}"):
        load_encoder(encoder)


def test_around_the_image_inputs_stay_zero():
    description = {"preprocessing": {**preprocessing(small_run()), "layout": "NCDHW", "mean": [0.5], "std": [2.0]}}
    given = Preprocessing.of(description, "here")
    image = torch.zeros((1, 8, 32, 32), dtype=torch.int16)
    image[:, 2:6] = torch.randint(0, 1000, (1, 4, 32, 32), dtype=torch.int16)
    x = given.inputs(image, torch.tensor([[[2, 6], [0, 32], [0, 32]]], dtype=torch.int32))
    assert (x[:, :, :2] == 0).all() and (x[:, :, 6:] == 0).all() and given.grid == Grid(tuple(SIZE), SPACING_MM)
    assert x[:, :, 2:6].mean().item() == pytest.approx(-0.25, abs=1e-5)


def test_random_weights_follow_from_the_seed_and_have_the_architecture(labelled):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    (a, _), (b, _), (c, _) = (load_encoder(f"{labelled}/encoder", "random", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pretrained, _ = load_encoder(f"{labelled}/encoder")
    assert a.config == pretrained.config
    weights = [dict(m.named_parameters())["patch_embed.proj.weight"] for m in (a, b, c, pretrained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])


def test_tokens_are_pooled_in_blocks_of_the_grid(labelled):
    encoder, _ = load_encoder(f"{labelled}/encoder")
    tokens = patch_tokens(encoder, torch.randn(1, 1, 8, 32, 32))
    assert tokens.shape == (1, 2 * 4 * 4, 192)
    pooled = pool_tokens(tokens, (2, 4, 4), (1, 3, 2))
    blocks = tokens.view(1, 2, 4, 4, 192)
    assert pooled.shape == (1, 2 * 2 * 2, 192)
    torch.testing.assert_close(pooled[0, 0], blocks[0, 0, :3, :2].mean(dim=(0, 1)))
    torch.testing.assert_close(pooled[0, -1], blocks[0, 1, 3:, 2:].mean(dim=(0, 1)))


def test_what_is_kept_is_not_computed_again(labelled, tmp_path):
    rows, root, first = features_of(labelled, f"{labelled}/encoder", tmp_path, pool=(1, 1, 1))
    source = FeatureSource(f"{labelled}/encoder", "pretrained", 0, (1, 1, 1), root, str(tmp_path / "features"))
    assert missing_rows(source, rows) == [] and first.tokens is not None and first.tokens[0].shape == (32, 192)
    changed = [{**rows[0], "state": "another"}, rows[1]]
    assert missing_rows(source, changed) == changed[:1]
    path = tmp_path / "features" / source.store().url.rpartition("/")[2] / source.name_of(rows[0])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="features of a volume are damaged.*computed again"):
        load_features(source, rows, {})


def test_a_volume_that_cannot_be_read_is_named_with_the_reason(labelled, tmp_path):
    index = read_index(f"{labelled}/volumes.parquet")
    row = {**index.accepted.to_pylist()[0], "path": "gone.dcm"}
    source = FeatureSource(f"{labelled}/encoder", "pretrained", 0, None, index.root, str(tmp_path / "features"))
    assert Compute(source, "cpu", 1)()(row).startswith("missing")
    with pytest.raises(UserError, match="no labelled volume can be read"):
        load_features(source, [row], {"gone.dcm": "missing"})
    assert read_source(f"{index.root}/{index.accepted.to_pylist()[0]['path']}")


def test_an_encoder_of_retina_crops_is_given_retina_crops(labelled, tmp_path):
    """Of a grid that is less deep than the volumes, so that the crop decides what is seen."""
    config = small_run()
    config.data.image_size, config.data.crop = [8, 16, 32], "retina"
    given = preprocessing(config)
    encoder = write_oct_encoder(tmp_path / "encoder", **given)
    rows, root, found = features_of(labelled, encoder, tmp_path)
    vit = EncoderArtifact.load(encoder)[0]
    for i, row in enumerate(rows):
        sampled, _ = read_volume(f"{root}/{row['path']}", Grid((8, 16, 32), SPACING_MM, "retina"))
        x = Volumes(AugmentConfig(), SPACING_MM)(*(torch.from_numpy(a)[None] for a in sampled[:2]))
        np.testing.assert_allclose(found.mean[i], vit(x)[0].mean(0).detach().numpy(), atol=1e-6)
    unknown = write_oct_encoder(tmp_path / "unknown", crop="fovea")
    with pytest.raises(UserError, match=r"preprocessing.crop.*fovea.*center"):
        Preprocessing.of(EncoderArtifact.load(unknown)[1], unknown)
    assert "crop" not in preprocessing(small_run()), "as earlier versions wrote it"
