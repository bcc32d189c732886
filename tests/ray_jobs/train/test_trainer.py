"""Training through Ray: kills, signals, another number of workers, memory, errors. On a science of a few numbers.

What a run does without Ray, too, is in tests/pathray/run: on one rank in test_session.py, on several in
test_session_ranks.py. That one worker ends with the bits of a run without Ray is in tests/ray_jobs/tune, of a training
beside evaluations.
"""

import signal
import threading
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pathray.config.sections import ScalingConfig
from pathray.data.order import uniform_order
from pathray.errors import UserError
from ray_jobs.train import attempts
from ray_jobs.train.job import Tracking, TrainJob
from ray_jobs.train.trainer import fit
from tests.builders.jobs import wait_for
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.toy_ranks import train_in_turn
from tests.builders.runs.toy_run import positions_by_step, seen, train_toy, weights
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

pytestmark = pytest.mark.ray
WHOLE = {step: set(range(12 * step, 12 * step + 12)) for step in range(8)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


def job_of(run, plan, workers=1, max_failures=2, **changes):
    run.mkdir(exist_ok=True)
    config = ToyConfig(run=str(run), **changes)
    scaling = ScalingConfig(workers=workers, accelerator="cpu", cpus_per_worker=0.5, max_failures=max_failures)
    return TrainJob(assemble, config, plan.path, str(run), scaling, tracking=Tracking(mlflow=False))


def train(run, plan, workers=1, max_failures=2, **changes):
    return fit(job_of(run, plan, workers, max_failures, **changes))


# --- workers that are killed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(ray_cluster, tmp_path_factory, plan):
    """A run of two workers of which one is killed at two steps, with one failure allowed to each fit; its folder is
    given relative to the driver's: (the folder, how it ended, what was warned of)."""
    folder, warned = tmp_path_factory.mktemp("killed"), []
    job = replace(job_of(folder / "run", plan, 2, 1, kills=[2, 5]), run_dir="run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(attempts.log, "warning", lambda text, *values: warned.append(text % values))
        return folder / "run", fit(job), warned


def test_a_killed_worker_is_restarted_and_the_run_ends_bit_equal_to_one_without_ray(killed, plan, tmp_path):
    run, outcome, _ = killed
    run_ranks(2, train_in_turn, tmp_path, assemble, plan.path, [ToyConfig(run=str(tmp_path / "whole"))])
    assert outcome.end == "budget" and weights(run) == weights(tmp_path / "whole")
    assert positions_by_step(run) == WHOLE


def test_failures_are_counted_since_the_last_checkpoint_and_not_over_the_whole_run(killed):
    run, outcome, warned = killed
    assert outcome.end == "budget" and sorted(p.name for p in run.glob("killed_*")) == [f"killed_{n}" for n in (2, 5)]
    assert len(warned) == 1 and "max_failures is used up, but training has come to" in warned[0]


def test_a_relative_output_folder_is_the_commands_and_not_the_workers(killed):
    run, outcome, _ = killed
    assert outcome.checkpoint.startswith(str(run)) and (run / "metrics.jsonl").exists()


@pytest.mark.heavy
def test_a_unit_whose_decoder_ends_a_task_of_the_cluster_is_replaced_exactly(ray_cluster, tmp_path, plan):
    row = int(uniform_order(plan.rows, 0).rows([40])[0])
    train_toy(tmp_path / "known", plan, refused_rows=[row])
    outcome = train(tmp_path / "run", plan, max_failures=3, save_every=12, crash_rows=[row], decode_on="cluster")
    assert (outcome.end, outcome.unreadable) == ("budget", 1)
    (fault,) = pq.read_table(tmp_path / "run" / "quarantine.parquet").to_pylist()
    assert (fault["position"], fault["row"], fault["reason"]) == (40, row, "crashed_decoder")
    assert weights(tmp_path / "known") == weights(tmp_path / "run")


# --- memory that is short, stops, and another number of workers -------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(ray_cluster, tmp_path_factory, plan):
    """A run of two workers of which one runs out of memory at step 3, and whose driver is sent SIGTERM once they train
    in smaller micro-batches: its folder, how it ended, the micro-batches until then."""
    run, handler = tmp_path_factory.mktemp("stopped") / "run", signal.getsignal(signal.SIGTERM)
    short = {"micro_batch": 6, "memory_for": 3, "memory_from_step": 3, "memory_rank": 1}

    def kick():
        wait_for(lambda: any(line["step"] > 3 for line in seen(run)))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=kick, daemon=True).start()
    outcome = train(run, plan, 2, save_every=12, max_failures=1, slow_s=0.4, **short)
    assert signal.getsignal(signal.SIGTERM) == handler
    return run, outcome, seen(run)


def test_a_worker_out_of_memory_trains_on_in_smaller_micro_batches(stopped):
    _, _, batches = stopped
    assert {len(line["position"]) for line in batches if line["step"] < 3} == {6}
    assert {(line["rank"], len(line["position"])) for line in batches if line["step"] > 3} == {(0, 3), (1, 3)}
    assert {step: {p for line in batches if line["step"] == step for p in line["position"]} for step in range(5)} == {
        step: WHOLE[step] for step in range(5)
    }


def test_a_signal_to_the_driver_asks_the_workers_to_stop(stopped):
    _, outcome, _ = stopped
    assert outcome.end == "stopped" and outcome.artifact is None
    assert 0 < outcome.images_seen < 96


def test_another_number_of_workers_sees_the_same_units_at_the_same_steps(stopped, plan):
    run, _, _ = stopped
    assert train(run, plan, 0).end == "budget"
    assert positions_by_step(run) == WHOLE
    ranks = {(line["step"], line["rank"]) for line in seen(run)}
    assert (0, 1) in ranks and (7, 1) not in ranks
    for step in range(8):
        owners = {}
        for line in seen(run):
            if line["step"] == step:
                for p in line["position"]:
                    assert owners.setdefault(p, line["rank"]) == line["rank"], "two ranks share a unit"


# --- what cannot be trained -------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_too_many_unreadable_units_stop_all_workers_with_the_figures(ray_cluster, tmp_path, plan):
    with pytest.raises(UserError, match="of 24 units up to step 2 were replaced"):
        train(tmp_path / "run", plan, 2, unreadable_every=2, max_corrupt_fraction=0.1)
    ray = tmp_path / "run" / "ray"
    assert len(list(ray.glob("fit-*"))) == 1 and not list(ray.glob("fatal-*")), "no restart is needed to tell"


def test_more_workers_than_the_cluster_has_room_for_are_refused_at_once(ray_cluster, tmp_path, plan):
    with pytest.raises(UserError, match="too little CPU"):
        train(tmp_path / "run", plan, 40)
