"""A step that hangs in a worker of Ray: its process ends, Ray starts another, and the run ends bit-equal."""

import json

import pytest

from pathray.config.sections import ScalingConfig
from pathray.run.layout import hang_note
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders.runs.hanging_run import HANGING_STEP, assemble
from tests.builders.runs.toy_run import train_toy, weights
from tests.builders.runs.toy_science import ToyConfig, write_plan


@pytest.mark.ray
@pytest.mark.heavy
def test_a_worker_whose_step_hangs_is_restarted_and_counted_as_a_failure(ray_cluster, tmp_path):
    plan, run = write_plan(tmp_path / "plan"), tmp_path / "run"
    run.mkdir()
    scaling = ScalingConfig(workers=1, accelerator="cpu", cpus_per_worker=0.5, max_failures=1)
    job = TrainJob(assemble, ToyConfig(run=str(run)), plan.path, str(run), scaling, tracking=Tracking(mlflow=False))
    assert fit(job).end == "budget"
    note = json.loads((run / hang_note(0)).read_text())
    assert (note["step"], note["fit_id"]) == (HANGING_STEP, job.fit_id) and "hang_forever" in note["stacks"]
    train_toy(tmp_path / "whole", plan)
    assert weights(run) == weights(tmp_path / "whole")
