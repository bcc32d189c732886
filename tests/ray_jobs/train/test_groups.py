"""Pre-formed ragged batches through a whole run: stopped without Ray, and resumed by workers that decode elsewhere."""

import pyarrow.parquet as pq
import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.store import checkpoint
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.toy_bags import BagConfig, assemble, bag_order, expected_rows, seen, write_bags
from tests.builders.runs.toy_ranks import train_in_turn

pytestmark = pytest.mark.ray


def resume_on_the_cluster(run, plan):
    scaling = ScalingConfig(workers=2, accelerator="cpu", cpus_per_worker=0.5)
    config = BagConfig(run=str(run), decode_on="cluster")
    return fit(TrainJob(assemble, config, plan.path, str(run), scaling, tracking=Tracking(mlflow=False)))


def end_of(run):
    tensors, meta = checkpoint.load(checkpoint.latest(str(run / "checkpoints"), "toy").path)
    return tensors, meta["images_seen"], meta["health"]["units"]


@pytest.mark.heavy
def test_a_run_over_groups_that_stops_and_decodes_elsewhere_afterwards_ends_bit_equal(ray_cluster, tmp_path):
    plan = write_bags(tmp_path / "plan")
    configs = [BagConfig(run=str(tmp_path / "whole")), BagConfig(run=str(tmp_path / "parts"), stop_at_step=2)]
    (whole, stopped), _ = run_ranks(2, train_in_turn, tmp_path / "ranks", assemble, plan.path, configs)
    assert stopped["end"] == "stopped" and 0 < stopped["images_seen"] < whole["images_seen"] == 72
    assert resume_on_the_cluster(tmp_path / "parts", plan).end == "budget"
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
