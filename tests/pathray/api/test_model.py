"""A trained regression predicts what its job reports, without the library importing the science."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pathray
from pathray.errors import MissingFile, UserError
from pathray.features.images import read_image
from ray_jobs import evaluate_regression
from ray_jobs.shell.cli import run_job
from regression.assembly import export
from regression.config import CONFIGS_DIR, resolve
from regression.plan import normaliser
from regression.recipe import RegressionRecipe
from tests.builders.encoders import write_encoder
from tests.builders.expression import made, run_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that nobody has trained, of genes on another scale than its outputs; 24 images with their table."""
    folder = tmp_path_factory.mktemp("model")
    plan = made(folder)[2]
    config = resolve(run_config(batch_size=4, grad_accum_steps=1, images=8), 1, plan.rows)
    export(RegressionRecipe(config, normaliser(plan)), str(folder / "encoder"), {"images_seen": 0})
    paths = plan.sources["path"].to_pylist()
    return SimpleNamespace(folder=folder, path=folder / "encoder", paths=paths, scale=normaliser(plan))


def test_predictions_are_those_of_the_evaluation_job(world):
    folder = world.folder
    rows = (folder / "images/table.csv").read_text().splitlines()[1:]
    lines = ["path,group_id,split", *(",".join([*row.split(",")[:2], "test"]) for row in rows)]
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    words = [f"model={world.path}", f"table={folder}/images/table.csv", f"split={folder}/split.csv"]
    words += ["accelerator=cpu", f"output={folder}/out", "eval.resamples=10"]
    assert run_job(evaluate_regression.main, evaluate_regression.EvaluateRegressionConfig, words, CONFIGS_DIR) == 0
    table = pq.read_table(folder / "out/predictions.parquet").sort_by("path")
    model = pathray.load_model(world.path, device="cpu")
    found = model.predict(sorted(world.paths))
    assert model.genes == ("y0", "y1", "y2") and found.dtype == np.float64
    for k, gene in enumerate(model.genes):
        assert np.array_equal(found[:, k], table[f"predicted_{gene}"].to_numpy())
    assert np.ptp(found, axis=0).min() > 0


def test_predictions_are_in_the_genes_own_units(world):
    model = pathray.load_model(world.path, device="cpu")
    net, given = model._predictor.net, model._predictor.preprocessing
    x = (np.stack([read_image(path) for path in world.paths]) / 255 - given.mean) / given.std
    with torch.no_grad():
        z = net(torch.from_numpy(x.transpose(0, 3, 1, 2)).float()).numpy()
    expected = z * world.scale.std + world.scale.mean
    np.testing.assert_allclose(model.predict(world.paths, batch_size=5), expected, atol=1e-5)


def test_files_arrays_and_tensors_give_the_same(world):
    model = pathray.load_model(world.path, device="cpu")
    pixels = np.stack([read_image(path) for path in world.paths])
    of_files, of_numpy = model.predict(world.paths), model.predict(pixels)
    of_torch = model.predict(torch.from_numpy(pixels))
    assert np.array_equal(of_files, of_numpy) and isinstance(of_torch, torch.Tensor)
    assert np.array_equal(of_torch.numpy(), of_files) and model.predict(pixels[:0]).shape == (0, 3)
    np.testing.assert_allclose(model.predict(world.paths[0]), of_files[:1], atol=1e-5)


def test_images_of_another_size_are_resized_and_must_be_square(world):
    model = pathray.load_model(world.path, device="cpu")
    small = np.stack([read_image(path) for path in world.paths[:2]])
    large = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(model.predict(large), model.predict(small), rtol=1e-9)
    with pytest.raises(UserError, match="not a square"):
        model.predict(large[:, :40])
    Image.fromarray(large[0, :40]).save(world.folder / "flat.png")
    with pytest.raises(UserError, match="cannot be read") as error:
        model.predict([world.folder / "flat.png"])
    assert error.value.where["file"] == str(world.folder / "flat.png")


def test_what_is_no_model_is_refused(world, tmp_path):
    with pytest.raises(MissingFile, match="no model here"):
        pathray.load_model(tmp_path)
    write_encoder(tmp_path / "encoder")
    with pytest.raises(UserError, match="this is an encoder") as error:
        pathray.load_model(tmp_path / "encoder")
    assert "load_encoder" in error.value.where["expected"]
