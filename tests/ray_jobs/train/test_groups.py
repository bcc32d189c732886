"""Pre-formed ragged batches through a whole training job, decoded in the workers and on the cluster."""

import pyarrow.parquet as pq
import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.store import checkpoint
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders.runs.toy_bags import BagConfig, assemble, bag_order, expected_rows, seen, write_bags

pytestmark = pytest.mark.ray


def train(run, plan, **changes):
    run.mkdir(exist_ok=True)
    scaling = ScalingConfig(workers=2, accelerator="cpu", cpus_per_worker=0.5)
    config = BagConfig(run=str(run), **changes)
    return fit(TrainJob(assemble, config, plan.path, str(run), scaling, tracking=Tracking(mlflow=False)))


def end_of(run):
    tensors, meta = checkpoint.load(checkpoint.latest(str(run / "checkpoints"), "toy").path)
    return tensors, meta["images_seen"], meta["health"]["units"]


@pytest.mark.heavy
def test_a_run_over_groups_that_stops_and_decodes_elsewhere_afterwards_ends_bit_equal(ray_cluster, tmp_path):
    plan = write_bags(tmp_path / "plan")
    whole = train(tmp_path / "whole", plan)
    stopped = train(tmp_path / "parts", plan, stop_at_step=2)
    assert stopped.end == "stopped" and 0 < stopped.images_seen < whole.images_seen == 72
    train(tmp_path / "parts", plan, decode_on="cluster")
    (tensors, *rest), (again, *same) = end_of(tmp_path / "whole"), end_of(tmp_path / "parts")
    assert all(torch.equal(tensors[name], again[name]) for name in tensors) and rest == same
    order, x = bag_order(plan, 0), plan.column("x")
    rows, counts = order.members(range(72))
    assert rest == [72, [counts.sum()]]
    expected = [(p // 12, p, expected_rows(order, plan, BagConfig(), p)) for p in range(72)]
    assert sorted(seen(tmp_path / "parts")) == sorted(seen(tmp_path / "whole")) == expected
    report = pq.read_table(tmp_path / "parts" / "quarantine.parquet")
    assert report.equals(pq.read_table(tmp_path / "whole" / "quarantine.parquet"))
    assert len(report) >= (x[rows] % 7 == 0).sum() > 20
