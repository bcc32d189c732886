"""Training through Ray: exact resume, other numbers of workers, kills, stops, errors. On a science of a few numbers.

What a run does without Ray, too, is in tests/pathray/run/test_session.py.
"""

import json
import shutil
import signal
import threading
import time

import pyarrow.parquet as pq
import pytest

from pathray.config.sections import ScalingConfig
from pathray.data.order import uniform_order
from pathray.errors import UserError
from pathray.run.stop import request_stop
from pathray.store.committed import list_committed
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import begin, fit
from tests.builders.runs.toy_run import positions_by_step, seen, train_toy, weights
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


def train(run, plan, workers=1, max_failures=2, **changes):
    run.mkdir(exist_ok=True)
    config = ToyConfig(run=str(run), **changes)
    scaling = ScalingConfig(workers=workers, accelerator="cpu", cpus_per_worker=0.5, max_failures=max_failures)
    job = TrainJob(assemble, config, plan.path, str(run), scaling, tracking=Tracking(mlflow=False))
    return fit(job)


@pytest.mark.parametrize("workers", [1, *(pytest.param(n, marks=pytest.mark.heavy) for n in (2, 3))])
def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_undisturbed_one(ray_cluster, tmp_path, plan, workers):
    whole = train(tmp_path / "whole", plan, workers)
    assert (whole.end, whole.images_seen) == ("budget", 96)
    first = train(tmp_path / "parts", plan, workers, stop_at_step=2)
    assert first.end == "stopped" and 0 < first.images_seen < 96
    second = train(tmp_path / "parts", plan, workers)
    assert second.end == "budget"
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    if workers == 1:
        train_toy(tmp_path / "alone", plan)
        assert weights(tmp_path / "alone") == weights(tmp_path / "whole"), "without Ray"
    assert positions_by_step(tmp_path / "whole") == {s: set(range(12 * s, 12 * s + 12)) for s in range(8)}
    rows = [json.loads(x)["images_seen"] for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [12 * i for i in range(1, 9)]


def test_a_killed_worker_is_restarted_and_the_run_ends_bit_equal(ray_cluster, tmp_path, plan):
    train(tmp_path / "whole", plan, 2)
    outcome = train(tmp_path / "killed", plan, 2, kills=[5])
    assert (tmp_path / "killed" / "killed_5").exists() and outcome.end == "budget"
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")


@pytest.mark.heavy
def test_failures_are_counted_since_the_last_checkpoint_and_not_over_the_whole_run(ray_cluster, tmp_path, plan, caplog):
    train(tmp_path / "whole", plan, 1)
    outcome = train(tmp_path / "run", plan, 1, max_failures=1, save_every=12, kills=[2, 4, 6])
    assert outcome.end == "budget" and len(list((tmp_path / "run").glob("killed_*"))) == 3
    assert weights(tmp_path / "whole") == weights(tmp_path / "run")
    assert "max_failures is used up, but training has come to" in caplog.text


@pytest.mark.parametrize("decode_on", ["worker", pytest.param("cluster", marks=pytest.mark.heavy)])
def test_a_unit_whose_decoder_ends_the_process_is_replaced_exactly_on_every_later_start(
    ray_cluster, tmp_path, plan, decode_on
):
    row = int(uniform_order(plan.rows, 0).rows([40])[0])
    train(tmp_path / "known", plan, refused_rows=[row])
    outcome = train(tmp_path / "run", plan, max_failures=3, save_every=12, crash_rows=[row], decode_on=decode_on)
    assert (outcome.end, outcome.unreadable) == ("budget", 1)
    (fault,) = pq.read_table(tmp_path / "run" / "quarantine.parquet").to_pylist()
    assert (fault["position"], fault["row"], fault["reason"]) == (40, row, "crashed_decoder")
    assert weights(tmp_path / "known") == weights(tmp_path / "run")
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "run" / "crashes", tmp_path / "again" / "crashes")
    train(tmp_path / "again", plan, max_failures=0, crash_rows=[row], decode_on=decode_on)
    assert weights(tmp_path / "known") == weights(tmp_path / "again")


@pytest.mark.heavy
def test_a_run_that_fails_at_one_step_again_and_again_ends(ray_cluster, tmp_path, plan):
    from ray.train import TrainingFailedError

    with pytest.raises(TrainingFailedError):
        train(tmp_path / "run", plan, 1, max_failures=1, save_every=12, kill_always_at=3)
    assert weights(tmp_path / "run")[0] in (24, 36), "the last is written while the step that fails is taken"
    assert [line["step"] for line in seen(tmp_path / "run")].count(3) in (4, 6), "fits of two attempts"


def test_another_number_of_workers_sees_the_same_units_at_the_same_steps(ray_cluster, tmp_path, plan):
    train(tmp_path / "run", plan, 2, stop_at_step=3)
    outcome = train(tmp_path / "run", plan, 1)
    assert outcome.end == "budget"
    steps = positions_by_step(tmp_path / "run")
    assert steps == {s: set(range(12 * s, 12 * s + 12)) for s in range(8)}
    ranks = {(line["step"], line["rank"]) for line in seen(tmp_path / "run")}
    assert (0, 1) in ranks and (7, 1) not in ranks
    for step in range(8):
        owners = {}
        for line in seen(tmp_path / "run"):
            if line["step"] == step:
                for p in line["position"]:
                    assert owners.setdefault(p, line["rank"]) == line["rank"], "two ranks share a unit"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_out_of_memory_trains_on_in_smaller_micro_batches(ray_cluster, tmp_path, plan, workers):
    short = {"micro_batch": 6, "memory_for": 3, "memory_from_step": 3, "memory_rank": workers - 1}
    outcome = train(tmp_path / "run", plan, workers, save_every=12, max_failures=workers - 1, **short)
    assert outcome.end == "budget" and positions_by_step(tmp_path / "run") == {
        s: set(range(12 * s, 12 * s + 12)) for s in range(8)
    }
    assert {len(line["position"]) for line in seen(tmp_path / "run") if line["step"] > 3} == {3}


@pytest.mark.heavy
def test_a_relative_output_folder_is_the_commands_and_not_the_workers(ray_cluster, tmp_path, plan, monkeypatch):
    (tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config = ToyConfig(run=str(tmp_path / "here" / "run"), total_images=24)
    scaling = ScalingConfig(accelerator="cpu", cpus_per_worker=0.5)
    outcome = fit(TrainJob(assemble, config, plan.path, "run", scaling, tracking=Tracking(mlflow=False)))
    assert outcome.checkpoint.startswith(str(tmp_path / "here" / "run"))
    assert (tmp_path / "here" / "run" / "metrics.jsonl").exists()


def test_a_stop_asked_for_while_a_job_prepares_holds(ray_cluster, tmp_path, plan):
    run = tmp_path / "run"
    run.mkdir()
    scaling = ScalingConfig(accelerator="cpu", cpus_per_worker=0.5)
    request_stop(str(run))
    assert begin(str(run), scaling) == "cpu" and not (run / "STOP").exists(), "one from before the job is void"
    request_stop(str(run))
    config, tracking = ToyConfig(run=str(run)), Tracking(mlflow=False)
    outcome = fit(TrainJob(assemble, config, plan.path, str(run), scaling, tracking=tracking, accelerator="cpu"))
    assert outcome.end == "stopped" and outcome.images_seen < 96


def test_unreadable_units_are_replaced_counted_and_listed(ray_cluster, tmp_path, plan):
    outcome = train(tmp_path / "run", plan, 2, unreadable_every=10)
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "run" / "quarantine.parquet")
    assert outcome.end == "budget" and outcome.unreadable == table.num_rows > 0
    assert set(table["reason"].to_pylist()) == {"truncated"}
    positions = table["position"].to_pylist()
    assert positions == sorted(positions) and len(set(positions)) >= len(positions) - 2


@pytest.mark.heavy
def test_too_many_unreadable_units_stop_all_ranks_with_the_figures(ray_cluster, tmp_path, plan):
    with pytest.raises(UserError, match="of 24 units up to step 2 were replaced"):
        train(tmp_path / "run", plan, 2, unreadable_every=2, max_corrupt_fraction=0.1)


def test_more_workers_than_the_cluster_has_room_for_are_refused_at_once(ray_cluster, tmp_path, plan):
    with pytest.raises(UserError, match="too little CPU"):
        train(tmp_path / "run", plan, 40)


def test_a_signal_to_the_driver_asks_the_workers_to_stop(ray_cluster, tmp_path, plan):
    run = tmp_path / "run"
    pid_ready = threading.Event()

    def kick():
        deadline = time.monotonic() + 60
        while not list(run.glob("seen-*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid_ready.set()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=kick, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    outcome = train(run, plan, 1, total_images=12 * 2000)
    assert pid_ready.is_set() and outcome.end == "stopped"
    assert signal.getsignal(signal.SIGTERM) == before


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_the_state_that_validation_finds_best_is_kept_and_exported_and_patience_ends_the_run(
    ray_cluster, tmp_path, plan
):
    outcome = train(tmp_path / "run", plan, 2, validate_every=12, best_at=36, patience=2)
    assert (outcome.end, outcome.images_seen) == ("early_stop", 60)
    (best,) = [c for c in list_committed(str(tmp_path / "run" / "checkpoints")) if c.name == "toy-best"][-1:]
    assert best.meta["images_seen"] == 36
    assert json.loads((tmp_path / "run" / "encoder" / "facts.json").read_text())["images_seen"] == 36
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {row["images_seen"]: row["val/score"] for row in rows if "val/score" in row}
    assert scores == {12: -24, 24: -12, 36: 0, 48: -12, 60: -24}
