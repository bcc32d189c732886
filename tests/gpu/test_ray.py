"""The jobs on a GPU: training through Ray Train, evaluators on what it leaves of the card, extraction, regression."""

import shutil

import numpy as np
import pytest

from pathray.features.read_bags import read_bag
from pathray.store import checkpoint
from pathray.store.committed import list_committed
from ray_jobs.tune import evaluation_resources
from tests.builders.cohort import write_manifest
from tests.builders.encoders import write_encoder
from tests.builders.expression import write_images
from tests.builders.patches import write_patches, write_tuning
from tests.builders.runs import adios_job
from tests.builders.runs.run import BUDGET, metrics, pretrain, write_cohort
from tests.builders.slides import write_slide
from tests.builders.zips import write_folder
from tests.ray_jobs.extract.test_extract_features import extract
from tests.ray_jobs.train.regression import test_regression_jobs
from tests.ray_jobs.tune.test_evaluators import RI, rows

pytestmark = pytest.mark.ray
GPU = ("scaling.accelerator=cuda", "scaling.gpus_per_worker=0.5")


def states(run):
    return {c.meta["images_seen"]: checkpoint.load(c.path) for c in list_committed(str(run / "checkpoints"))}


def test_evaluators_judge_on_what_the_training_leaves_of_the_gpu(ray_cluster, tmp_path, monkeypatch):
    asked, request_of = [], evaluation_resources.request_of
    monkeypatch.setattr(evaluation_resources, "request_of", lambda *a: asked.append(request_of(*a)) or asked[-1])
    manifest = write_patches(tmp_path / "patches")
    tuning = write_tuning(tmp_path / "tuning.yaml", manifest, execution="max_pending_jobs: 9")
    argv = ("--config", tuning, *GPU, "tuning.execution.device=auto", "model.use_bfloat16=true")
    assert pretrain(tmp_path / "run", write_cohort(tmp_path / "cohort"), *argv) == 0
    assert [(a.accelerator, a.resources["GPU"]) for a in asked] == [("cuda", 0.5)], "no CUDA, no evaluation"
    found = rows(tmp_path / "run")
    assert [(row["images_seen"], row["status"]) for row in found] == [(n, "ok") for n in range(0, BUDGET + 1, 8)]
    assert all(0 <= row[RI] <= 1 for row in found)
    ran_on = states(tmp_path / "run")[BUDGET][1]["ran_on"]
    assert ran_on["kind"] == "cuda" and ran_on["precision"] == "bf16"
    assert metrics(tmp_path / "run")[-1]["memory_gib"] > 0, "only a GPU counts what is in use"


def test_adios_in_bfloat16_goes_on_from_its_checkpoint_to_the_same_bits(ray_cluster, tmp_path):
    write_folder(tmp_path / "zips", archives=2, patches=6)
    argv = (*GPU, "optimization.precision=bf16", "optimization.deterministic=true", "viz_freq=0")
    run = tmp_path / "run"
    assert adios_job.pretrain(run, tmp_path / "zips", *argv) == 0
    whole = states(run)
    assert sorted(whole) == [8, 16] and whole[16][1]["ran_on"]["kind"] == "cuda"
    shutil.rmtree(adios_job.checkpoints(run)[16])
    assert adios_job.pretrain(run, tmp_path / "zips", *argv) == 0
    a, b = whole[16][0], states(run)[16][0]
    assert a.keys() == b.keys() and [n for n in a if not a[n].equal(b[n])] == []


def test_features_of_a_gpu_are_those_of_a_cpu(ray_cluster, tmp_path):
    write_encoder(tmp_path / "a")
    write_slide(tmp_path / "s.tiff", mpp=0.5)
    write_manifest(tmp_path / "slides.csv", [{"slide_id": "s", "wsi_path": "s.tiff", "mpp": 0.5}])
    for device in ("cpu", "cuda"):
        assert extract(tmp_path, f"accelerator={device}", "actors=1", "precision=fp32", output=device) == 0
    there, here = ([read_bag(str(p)) for p in sorted((tmp_path / d).rglob("*.h5"))] for d in ("cuda", "cpu"))
    assert len(there) == len(here) == 1 and np.array_equal(there[0].coords, here[0].coords)
    apart = np.abs(there[0].features.astype(np.float64) - here[0].features)
    assert apart.max() < 1e-4 * np.abs(here[0].features).max()


def test_a_regression_trains_in_bfloat16(ray_cluster, tmp_path):
    table = write_images(tmp_path)
    assert test_regression_jobs.split(table, tmp_path / "split.csv", "fractions=[0.5, 0.25, 0.25]") == 0
    argv = ("scaling.accelerator=cuda", "train.amp=bf16")
    assert test_regression_jobs.train(tmp_path / "out", table, tmp_path / "split.csv", *argv) == 0
    (run,) = test_regression_jobs.runs(tmp_path / "out")
    state = checkpoint.load(checkpoint.latest(str(run / "checkpoints"), "regression").path)[1]
    assert state["images_seen"] == 48 and state["ran_on"]["kind"] == "cuda" and state["ran_on"]["precision"] == "bf16"
