"""The training job on XLA through Ray Train: our backend config, one worker, its SPMD mesh over four devices."""

import json
import shutil

import numpy as np
import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders import small

pytestmark = pytest.mark.ray
KEYS = ("training.save_every=32", "checkpoint.latest_every=16", "checkpoint.keep_last_n=9")


def fit_small(run, plan):
    run.mkdir(exist_ok=True)
    scaling = ScalingConfig(workers=1, accelerator="xla", cpus_per_worker=1.0, max_failures=0)
    job = TrainJob(small.assemble, small.config(*KEYS), plan.path, str(run), scaling, tracking=Tracking(mlflow=False))
    return fit(job)


@pytest.fixture(scope="module")
def fitted(ray_cluster, plan, tmp_path_factory):
    run = tmp_path_factory.mktemp("fit")
    return run, fit_small(run, plan)


@pytest.fixture(scope="module")
def reference(plan, cpu):
    parts = small.assemble(small.config(*KEYS), plan, 1)
    return small.train(parts.recipe, small.stream(parts, plan), parts.settings, cpu)


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_fit_on_xla_agrees_with_a_cpu_without_ray(fitted, reference):
    run, outcome = fitted
    assert (outcome.end, outcome.images_seen) == ("budget", small.STEPS * small.G)
    tensors, meta = checkpoint.load(outcome.checkpoint)
    assert meta["ran_on"]["kind"] == "xla" and meta["ran_on"]["world_size"] == 1
    np.testing.assert_allclose([row["loss"] for row in rows(run)], small.losses(reference[0]), atol=1e-4)
    expected = reference[2][0]
    assert tensors.keys() == expected.keys()
    apart = max(float((tensors[name].double() - expected[name].double()).abs().max()) for name in expected)
    print(f"weights and moments of a fit on XLA and of a CPU are at most {apart:.1e} apart")
    assert apart < 1e-4


def test_nothing_is_compiled_after_the_third_step_saves_included(fitted):
    compilations = [row["compilations"] for row in rows(fitted[0])]
    print(f"compilations of I-JEPATH through Ray after each step, saved after every second: {compilations}")
    assert len(compilations) == small.STEPS and compilations[0] > 0
    assert len(set(compilations[2:])) == 1, compilations


def test_its_artifact_loads_on_a_cpu(fitted, reference):
    vit, _ = EncoderArtifact.load(fitted[1].artifact)
    expected = reference[2][0]
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(tensor, expected[f"model.teacher.{name}"], atol=1e-4, rtol=0, msg=name)


def test_a_fit_that_goes_on_from_its_checkpoint_ends_bit_equal(fitted, plan, tmp_path):
    run, whole = fitted
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    half = small.G * small.STEPS // 2
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if checkpoint.load(str(folder))[1]["images_seen"] > half:
            shutil.rmtree(folder)
    resumed = fit_small(tmp_path / "run", plan)
    assert resumed.end == "budget" and [row["step"] for row in rows(tmp_path / "run")] == [5, 6, 7, 8]
    (a, _), (b, _) = checkpoint.load(whole.checkpoint), checkpoint.load(resumed.checkpoint)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
