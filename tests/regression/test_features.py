"""What a frozen backbone sees is computed once, kept, found again, and trained on in place of the images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pathray.device import Device
from pathray.errors import UnreadableUnit, UserError
from pathray.store.storage import Storage
from regression.assembly import assemble
from regression.baseline import colour_features, predictions
from regression.data import FeatureReader, read_square
from regression.evaluate import predict
from regression.features import (
    PART,
    FeatureFolder,
    Features,
    backbone_digest,
    check_evaluated,
    feature_folder,
    features_of,
    uses_cache,
)
from regression.model import build_net, preprocessing
from regression.plan import normaliser, rows_of, targets
from regression.recipe import RegressionRecipe
from tests.builders.expression import made, run_config


def frozen(**train):
    config = run_config(**train)
    config.model.frozen, config.augment.geometry, config.augment.stain = True, False, 0.0
    return config


def computed(config, plan, batch_size=5):
    net = build_net(config).eval()
    paths = plan.sources["path"].to_pylist()
    return features_of(net, preprocessing(config), paths, Device.of("cpu"), batch_size=batch_size, threads=2)


def test_features_are_what_the_network_sees_in_every_image_whatever_the_batches(tmp_path):
    _, _, plan = made(tmp_path)
    config = frozen()
    found = computed(config, plan)
    recipe = RegressionRecipe(config, normaliser(plan))
    pixels = np.stack([read_square(path, 32) for path in plan.sources["path"].to_pylist()])
    with torch.no_grad():
        expected = recipe.net.eval().features(recipe.inputs(torch.from_numpy(pixels))).numpy()
    assert np.abs(found.seen - expected).max() < 1e-5
    assert np.array_equal(found.colours, colour_features(pixels))
    assert np.abs(computed(config, plan, batch_size=24).seen - found.seen).max() < 1e-5


def test_an_image_that_cannot_be_read_is_nan_and_is_replaced_in_training_but_never_evaluated(tmp_path):
    _, _, plan = made(tmp_path)
    config = frozen()
    lost = int(rows_of(plan, "test")[0])
    path = plan.sources["path"].to_pylist()[lost]
    Image.new("RGB", (32, 16)).save(path)
    found = computed(config, plan)
    assert np.isnan(found.seen[lost]).all() and np.isnan(found.colours[lost]).all()
    assert np.isfinite(np.delete(found.seen, lost, axis=0)).all()
    folder = FeatureFolder(str(tmp_path / "kept"), tuple(plan.sources["path"].to_pylist()))
    folder.write(0, found)
    with pytest.raises(UserError, match=path):
        check_evaluated(folder, plan)
    folder.write(0, Features(found.seen, np.where(np.arange(24)[:, None] == rows_of(plan, "train")[0], np.nan, 0.0)))
    check_evaluated(folder, plan)
    reader = FeatureReader.of(plan, found.seen)
    with pytest.raises(UnreadableUnit, match=path):
        reader.read({"source": lost}, 0, 0)
    recipe = RegressionRecipe(config, normaliser(plan), features=found.seen)
    with pytest.raises(UserError, match=path):
        predict(recipe, plan, rows_of(plan, "test"), Device.of("cpu"), 4)


def test_parts_are_written_once_and_found_again_and_a_damaged_one_is_named(tmp_path):
    paths = tuple(f"{i}.png" for i in range(PART + 3))
    folder = FeatureFolder(str(tmp_path / "f"), paths)
    seen = np.arange(len(paths) * 2, dtype=np.float32).reshape(-1, 2)
    assert folder.missing() == [0, 1]
    folder.write(1, Features(seen[PART:], np.ones((3, 12))))
    assert folder.missing() == [0]
    folder.write(0, Features(seen[:PART], np.zeros((PART, 12))))
    assert folder.missing() == [] and np.array_equal(folder.load().seen, seen)
    assert folder.load().colours.sum() == 36
    (tmp_path / "f" / "part-000001.npz").write_bytes(b"cut short")
    with pytest.raises(UserError, match="part-000001"):
        folder.load()


def test_the_folder_is_another_for_other_weights_other_inputs_and_images_that_changed(tmp_path):
    config, paths = frozen(), ["a.png", "b.png"]

    def folder(config=config, states=("1", "2")):
        return feature_folder(str(tmp_path), config, paths, states).folder

    other_seed, other_mean = frozen(), frozen()
    other_seed.seed, other_mean.data.mean = 43, [0.5, 0.5, 0.5]
    other_head = frozen(lr=0.5)
    found = [folder(), folder(other_seed), folder(other_mean), folder(states=("1", "3"))]
    assert len(set(found)) == 4 and folder(other_head) == folder()
    assert Storage.of(folder()).url.startswith(str(tmp_path))


def test_folds_that_build_the_same_backbone_at_the_same_time_get_the_same_weights():
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: backbone_digest(build_net(run_config())), range(12)))
    assert found == {backbone_digest(build_net(run_config()))}


def test_only_a_frozen_backbone_that_sees_images_always_alike_is_trained_on_kept_features():
    turned, stained, tuned = frozen(), frozen(), frozen()
    turned.augment.geometry, stained.augment.stain, tuned.model.frozen = True, 0.05, False
    assert uses_cache(frozen())
    assert not any(map(uses_cache, (turned, stained, tuned)))


def test_a_head_trained_on_kept_features_is_that_trained_on_the_images(tmp_path):
    _, _, plan = made(tmp_path)
    config = frozen(global_batch=4, batch_size=4, images=24)
    folder = feature_folder(str(tmp_path / "kept"), config, plan.sources["path"].to_pylist(), [""] * 24)
    folder.write(0, computed(config, plan))
    config.model.features = folder.folder
    kept = assemble(config, plan, 1)
    images = RegressionRecipe(config, normaliser(plan))
    unit = {"source": np.int32(rows_of(plan, "train")[0])}
    batch = {k: torch.from_numpy(np.asarray(v)) for k, v in kept.reader.collate([kept.reader.read(unit, 0, 0)]).items()}
    pixels = torch.from_numpy(read_square(plan.sources["path"].to_pylist()[int(unit["source"])], 32))[None]
    by_image = {"image": images.inputs(pixels), "target": batch["target"]}
    progress = None
    ours = kept.recipe.loss("model", kept.recipe.prepare(batch, progress), progress)
    theirs = images.loss("model", by_image, progress)
    assert ours.sum.item() == pytest.approx(theirs.sum.item(), rel=1e-5)
    test = rows_of(plan, "test")
    device = Device.of("cpu")
    found, expected = (predict(recipe, plan, test, device, 4) for recipe in (kept.recipe, images))
    assert np.abs(found - expected).max() < 1e-4


def test_a_baseline_is_fitted_to_training_rows_that_could_be_read_alone(tmp_path):
    _, _, plan = made(tmp_path)
    features = np.random.default_rng(0).normal(size=(24, 4))
    train, test = rows_of(plan, "train"), rows_of(plan, "test")
    whole = predictions(features, plan, 0)
    other = features.copy()
    other[test] += 100.0
    assert np.array_equal(predictions(other, plan, 0)[train], whole[train]), "test rows have no say"
    other = features.copy()
    other[train[0]] = np.nan
    found = predictions(other, plan, 0)
    assert np.isnan(found[train[0]]).all() and np.isfinite(np.delete(found, train[0], axis=0)).all()
    assert targets(plan).shape == whole.shape
