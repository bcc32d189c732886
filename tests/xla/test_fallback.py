"""Two workers on PJRT's CPU client cannot train together: each sees one host. So one trains, through Ray."""

import json

import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.run.layout import SINGLE_WORKER
from pathray.store import checkpoint
from ray_jobs.shell.run_summary import write_run_summary
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders import small


@pytest.mark.ray
def test_workers_that_cannot_meet_are_tried_again_and_then_one_trains_with_the_same_global_batch(
    ray_cluster, plan, tmp_path, cpu
):
    scaling = ScalingConfig(
        workers=2, accelerator="xla", cpus_per_worker=0.5, max_failures=0, fallback_single_worker=True
    )
    job = TrainJob(small.assemble, small.config(), plan.path, str(tmp_path), scaling, tracking=Tracking(mlflow=False))
    outcome = fit(job)
    assert (outcome.end, outcome.images_seen) == ("budget", small.STEPS * small.G)
    note = json.loads((tmp_path / SINGLE_WORKER).read_text())
    assert note["workers"] == 2 and "hosts that XLA sees" in note["error"]
    tensors, meta = checkpoint.load(outcome.checkpoint)
    assert (meta["ran_on"]["world_size"], meta["global_batch"]) == (1, small.G)
    parts = small.assemble(small.config(), plan, 1)
    expected = small.train(parts.recipe, small.stream(parts, plan), parts.settings, cpu)[2][0]
    assert all(torch.allclose(tensors[name].double(), expected[name].double(), atol=1e-4) for name in expected)
    write_run_summary(str(tmp_path), outcome, {})
    assert "1, because 2 could not be initialised" in (tmp_path / "summary.md").read_text()
