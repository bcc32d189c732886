"""From a published file to features and PathoROB's metrics, by the commands that a user types."""

import contextlib
import json
import os

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import pathray
from pathray.config.load import load_config
from pathray.device import Device
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.judge import image_settings
from pathray.evaluation.plugins import features_of
from pathray.features.read_bags import read_bag
from pathray.features.tables import read_meta, read_table
from pathray.store.artifact import describe
from ray_jobs import evaluate, extract_features, import_encoder
from ray_jobs.extract import actors as extraction
from ray_jobs.shell.cli import run_job
from ray_jobs.shell.runtime import Session
from tests.builders.encoders import write_encoder
from tests.builders.patches import write_patches
from tests.builders.published import plain_features, random_weights, shrink, tiny_row
from tests.builders.slides import write_slide
from tests.ray_jobs.extract.test_extract_features import OneByOne


@pytest.fixture
def here(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(extraction, "ActorMap", OneByOne)
    monkeypatch.setattr(extraction, "ray_session", lambda *a, **k: contextlib.nullcontext(Session(True, {"CPU": 2.0})))


def run_import(*words):
    return run_job(import_encoder.main, import_encoder.ImportConfig, words, import_encoder.CONFIGS_DIR)


def run_extract(*words):
    job, given = extract_features, (*words, "actors=1", "thumbnails=false")
    return run_job(job.main, job.ExtractConfig, given, job.CONFIGS_DIR, job.GROUPS)


def write_weights(folder, name):
    row = tiny_row(name)
    weights = random_weights(row)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    return row, weights


def imported(tmp_path, name="uni", output="encoder"):
    row, weights = write_weights(tmp_path / name, name)
    assert run_import(f"weights={tmp_path}/{name}", f"model={name}", f"output={tmp_path}/{output}") == 0
    return row, weights


def write_images(folder, side, count=3):
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return images


def test_a_file_becomes_an_encoder_that_images_go_through(here, tmp_path, capsys):
    row, weights = imported(tmp_path)
    assert capsys.readouterr().out == f"outputs: encoder={tmp_path}/encoder\n"
    images = write_images(tmp_path / "images", row.size)
    assert run_extract(f"encoders=[{tmp_path}/encoder]", f"images={tmp_path}/images", f"output={tmp_path}/out") == 0
    table = f"{tmp_path}/out/encoder/features.parquet"
    np.testing.assert_allclose(read_table(table).features, plain_features(row, weights, images), atol=1e-5)
    settings = read_meta(table)["provenance"]
    assert settings["settings"]["pooling"] == "cls"
    assert settings["encoder"]["sha256"] == describe(f"{tmp_path}/encoder")["sha256"]


def test_encoders_of_several_kinds_read_the_same_images_each_pooled_as_its_own(here, tmp_path):
    rows = {name: imported(tmp_path, name, f"e/{name}") for name in ("uni", "conch")}
    own = write_encoder(tmp_path / "e" / "own", size=64)
    images = write_images(tmp_path / "images", 64)
    listed = ",".join([f"{tmp_path}/e/{name}" for name in rows] + [own])
    assert run_extract(f"encoders=[{listed}]", f"images={tmp_path}/images", f"output={tmp_path}/out") == 0
    for name, (row, weights) in rows.items():
        found = read_table(f"{tmp_path}/out/{name}/features.parquet").features
        np.testing.assert_allclose(found, plain_features(row, weights, images), atol=1e-5)
    assert read_meta(f"{tmp_path}/out/own/features.parquet")["provenance"]["settings"]["pooling"] == "mean"


def test_tiles_of_slides_have_the_encoders_size_and_spacing(here, tmp_path):
    row, _ = imported(tmp_path)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "s.tiff", mpp=0.5)
    assert run_extract(f"encoders=[{tmp_path}/encoder]", f"slides={tmp_path}/slides", f"output={tmp_path}/out") == 0
    bag = read_bag(f"{tmp_path}/out/encoder/s.h5")
    assert (bag.tile["patch_size"], bag.tile["mpp"], bag.tile["pooling"]) == (row.size, 0.5, "cls")
    assert bag.features.shape[1] == row.dim and len(bag.features) > 5
    assert bag.tile["encoder_sha256"] == describe(f"{tmp_path}/encoder")["sha256"]
    again = pathray.load_encoder(tmp_path / "encoder").embed(pathray.open_slide(tmp_path / "slides" / "s.tiff"))
    np.testing.assert_allclose(again.features, bag.features, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "name", "dim"), [("univ1", "univ1", 24), ("uni2h", "uni2h", 24), ("univ2", "uni2h", 24)]
)
def test_a_preset_takes_its_artifact_and_20x(here, tmp_path, monkeypatch, preset, name, dim):
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "s.tiff", mpp=0.5)
    write_weights(tmp_path / "w", name)
    words = (f"encoder={preset}", f"encoder.dim={dim}", "slides=.", "output=features")
    assert run_import("weights=w", f"model={name}", f"output=encoders/{name}") == 0
    assert run_extract(*words) == 0
    bag = read_bag(f"features/{name}/s.h5")
    assert (bag.tile["patch_size"], bag.tile["mpp"]) == (224, 0.5)


def test_a_preset_without_its_artifact_says_how_it_is_made_and_one_of_another_width_is_refused(
    here, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run_extract("encoder=uni2h", "slides=.", "output=features") == 2
    said = capsys.readouterr().err
    assert "ray_jobs.import_encoder weights=… model=uni2h output=encoders/uni2h" in said
    imported(tmp_path, "uni", "encoders/uni2h")
    assert run_extract("encoder=uni2h", "slides=.", "output=features") == 2
    assert "this is not uni2h" in (said := capsys.readouterr().err) and "1536" in said
    assert not (tmp_path / "features").exists()


def test_bad_words_are_answered_in_a_line_and_nothing_is_written(here, tmp_path, capsys):
    write_weights(tmp_path / "w", "uni")
    where = (f"weights={tmp_path}/w", f"output={tmp_path}/out")
    for words, said in (
        ((*where, "model=uni3"), "no such published model"),
        ((*where, "model=uni2h"), "lack parameters of uni2h"),
        ((*where, "size_px=50"), "a multiple of 16"),
        ((*where, "mean=[1,2]"), "one value per colour"),
        ((*where, "std=[1,0,1]"), "std > 0"),
        ((*where, "interpolation=lanczos"), "unknown choice"),
        ((*where, "mpp=-1"), "> 0"),
        ((f"weights={tmp_path}/none", where[1]), "no weights here"),
        ((where[0], f"output={tmp_path}/w"), "the folder of the weights"),
    ):
        assert run_import(*words) == 2, words
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
        assert not (tmp_path / "out").exists() and os.listdir(tmp_path / "w") == ["model.safetensors"]


def judged_words(tmp_path, manifest):
    """The command of the config that is shipped for published encoders."""
    words = ["--config=evaluate_published", f"snapshot={tmp_path}/encoder", f"output={tmp_path}/judged"]
    for i in (0, 1):
        dataset = f"tuning.plugins[{i}].datasets.camelyon"
        words += [f"{dataset}.manifest_csv={manifest}", f"{dataset}.neighbours=3"]
    return words


def test_patches_are_judged_as_the_published_model_sees_them(here, tmp_path):
    row, weights = imported(tmp_path, "virchow2")
    manifest = write_patches(tmp_path / "patches", px=48)
    words = judged_words(tmp_path, manifest)
    plugin = load_config(evaluate.EvaluateConfig, words, configs_dir=evaluate.CONFIGS_DIR).config.tuning.plugins[0]
    dataset = open_dataset("camelyon", manifest, neighbours=3)
    found = features_of(dataset, f"{tmp_path}/encoder", Device.of("cpu"), image_settings(plugin))
    size = (row.size, row.size)
    images = [Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC) for path in dataset.images]
    np.testing.assert_allclose(found, plain_features(row, weights, np.stack([np.array(i) for i in images])), atol=1e-5)


@pytest.mark.ray
def test_an_encoder_is_judged_by_pathorob_in_one_command(ray_cluster, monkeypatch, tmp_path):
    shrink(monkeypatch)
    imported(tmp_path, "virchow2")
    words = [*judged_words(tmp_path, write_patches(tmp_path / "patches", px=48)), "mlflow=false", "accelerator=cpu"]
    assert run_job(evaluate.main, evaluate.EvaluateConfig, words, evaluate.CONFIGS_DIR) == 0
    (line,) = (tmp_path / "judged" / "robustness.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["status"] == "ok" and found["identity"] == describe(f"{tmp_path}/encoder")["sha256"]
    assert 0 <= found["pathorob/camelyon/ri"] <= 1 and "probe/camelyon/knn_id" in found
