"""Workers that cannot be initialised together: tried once more, then one worker. Starts no Ray; see also tests/xla."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.device import Device
from pathray.errors import UserError
from pathray.run.layout import SINGLE_WORKER, fatal_note, group_note
from pathray.run.outcome import Outcome
from pathray.store.storage import Storage
from ray_jobs.train import attempts
from ray_jobs.train.backends import ONE_HOST, XlaConfig, backend_config
from ray_jobs.train.group_start import falls_back, read_fallback
from ray_jobs.train.job import TrainJob
from ray_jobs.train.worker import train_worker
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

HOSTS = UserError("the number of workers and the number of hosts that XLA sees differ", key="scaling.workers")


def job_of(run, workers=2, max_failures=3, fallback=True, **more):
    scaling = ScalingConfig(
        workers=workers, accelerator="cpu", max_failures=max_failures, fallback_single_worker=fallback
    )
    return TrainJob(assemble, ToyConfig(run=str(run)), "", str(run), scaling, accelerator="cpu", **more)


@pytest.fixture
def fits(monkeypatch, tmp_path):
    """`fits(job, end, …)`: how a job ends whose fits end so, in turn, and for each fit its workers and Ray's restarts.
    "group": Ray cannot start the workers; "met": they have met, and one dies later; an error is what a worker raises
    before they have met."""
    from ray.train import ControllerError, WorkerGroupError

    def run(job, *ends):
        seen, left, store = [], list(ends), Storage.of(str(tmp_path))

        def fit():
            end = left.pop(0)
            if end == "done":
                return SimpleNamespace(return_value={"end": "budget"})
            if end == "group":
                raise ControllerError(RuntimeError("2 workers did not start in time"))
            if end == "met":
                store.write_bytes(group_note(job.fit_id), b"{}")
                raise WorkerGroupError("a worker died", {})
            raise WorkerGroupError("a worker failed", {0: end})

        def trainer(job, store, number):
            seen.append((job.scaling.workers, 0 if job.starting else job.scaling.max_failures))
            return SimpleNamespace(fit=fit)

        monkeypatch.setattr(attempts, "ray_trainer", trainer)
        try:
            return attempts.fit_while_it_advances(job, store)["end"], seen
        except (WorkerGroupError, ControllerError, UserError) as e:
            return e, seen

    return run


@pytest.mark.parametrize("failure", ["group", RuntimeError("connection refused"), HOSTS])
def test_after_two_failures_to_initialise_one_worker_trains(fits, tmp_path, caplog, failure):
    job = job_of(tmp_path)
    assert fits(job, failure, failure, "done") == ("budget", [(2, 0), (2, 0), (1, 3)])
    note = json.loads((tmp_path / SINGLE_WORKER).read_text())
    assert note["workers"] == 2 and note["fit_id"] == job.fit_id and note["error"]
    assert job.alone and "trying once more" in caplog.text and "one worker trains, with the same" in caplog.text


def test_one_failure_to_initialise_is_followed_by_the_same_workers(fits, tmp_path):
    job = job_of(tmp_path)
    assert fits(job, "group", "done") == ("budget", [(2, 0), (2, 0)])
    assert not (tmp_path / SINGLE_WORKER).exists() and not job.alone


def test_a_failure_in_training_is_none_to_initialise(fits, tmp_path):
    end, seen = fits(job_of(tmp_path), "group", "met", "met")
    assert isinstance(end, Exception) and seen == [(2, 0), (2, 0), (2, 3)], "Ray restarts the third fit's workers"
    assert read_fallback(Storage.of(tmp_path)) is None


def test_whoever_wants_no_restarts_gets_none_in_training(fits, tmp_path):
    end, seen = fits(job_of(tmp_path, max_failures=0), "met")
    assert isinstance(end, Exception) and seen == [(2, 0)]


def test_without_the_fallback_ray_counts_all_failures(fits, tmp_path):
    end, seen = fits(job_of(tmp_path, fallback=False), "group")
    assert isinstance(end, Exception) and seen == [(2, 3)]


def test_what_the_user_can_mend_is_not_tried_again(fits, tmp_path):
    end, seen = fits(job_of(tmp_path), UserError("cannot import torch_xla", key="accelerator"))
    assert isinstance(end, UserError) and len(seen) == 1


def test_the_next_start_knows_and_tries_the_workers_once(fits, tmp_path, caplog):
    assert fits(job_of(tmp_path), "group", "group", "done")[0] == "budget"
    assert fits(job_of(tmp_path), "group", "done") == ("budget", [(2, 0), (1, 3)])
    assert "an earlier start trained with one worker, as 2 could not be initialised: 2 are tried once" in caplog.text
    assert fits(job_of(tmp_path, workers=1), "done") == ("budget", [(1, 3)])
    assert not (tmp_path / SINGLE_WORKER).exists(), "one worker was asked for"


def test_by_default_it_is_on_where_tpus_train_together(monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    several = ScalingConfig(workers=2)
    assert falls_back(several, "xla") and not falls_back(several, "cpu") and not falls_back(several, "cuda")
    assert not falls_back(ScalingConfig(workers=1), "xla")
    assert not falls_back(ScalingConfig(workers=2, fallback_single_worker=False), "xla")
    assert falls_back(ScalingConfig(workers=2, fallback_single_worker=True), "cpu")
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert not falls_back(several, "xla")


def test_the_global_batch_is_the_same_with_one_worker(fits, tmp_path):
    plan = write_plan(tmp_path / "plan")
    job = job_of(tmp_path)
    fits(job, "group", "group", "done")
    before, after = assemble(job.config, plan, 2).settings, assemble(job.config, plan, job.scaling.workers).settings
    assert before.global_batch == after.global_batch == 12
    assert (before.micros_per_step(2), after.micros_per_step(job.scaling.workers)) == (3, 6)


# --- a worker ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """`worker(job, rank)`: what a worker of two returns; every other one has met it."""
    write_plan(tmp_path / "plan")
    monkeypatch.setattr("pathray.run.session.train", lambda *given, **settings: Outcome("budget", 12, {}, None, None))
    monkeypatch.setattr(Device, "gather_objects", lambda device, value: [value] * device.world_size)

    def run(job, rank=0):
        job.plan_path = str(tmp_path / "plan")
        monkeypatch.setattr(Device, "of", lambda kind: Device("cpu", torch.device("cpu"), rank, 2))
        return train_worker({"job": pickle.dumps(job)})

    return run


def test_rank_0_notes_that_all_have_met_and_that_several_train_again(worker, tmp_path):
    (tmp_path / SINGLE_WORKER).write_text("{}")
    job = job_of(tmp_path, starting=True)
    assert worker(job, rank=1)["end"] == "budget" and not (tmp_path / group_note(job.fit_id)).exists()
    assert worker(job, rank=0)["end"] == "budget"
    assert json.loads((tmp_path / group_note(job.fit_id)).read_text()) == {"workers": 2}
    assert not (tmp_path / SINGLE_WORKER).exists()


def test_workers_that_xla_sees_apart_are_left_to_the_driver(monkeypatch, tmp_path):
    def alone(kind):
        raise HOSTS

    monkeypatch.setattr(Device, "of", alone)
    job = job_of(tmp_path, starting=True)
    with pytest.raises(UserError, match="hosts that XLA sees"):
        train_worker({"job": pickle.dumps(job)})
    assert not (tmp_path / fatal_note(job.fit_id)).exists(), "the next fit's workers would end with it"
    job.starting = False
    with pytest.raises(UserError, match="hosts that XLA sees"):
        train_worker({"job": pickle.dumps(job)})
    assert (tmp_path / fatal_note(job.fit_id)).exists()


# --- what Ray is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("starting", "limits"), [(True, (0, 0)), (False, (3, -1))])
def test_ray_restarts_nothing_while_a_group_starts(monkeypatch, tmp_path, starting, limits):
    import ray.train.torch  # noqa: F401  # its trainer inherits from the one that is replaced here

    given = {}
    name = "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"
    monkeypatch.setattr(name, lambda function, **keys: given.update(keys))
    attempts.ray_trainer(job_of(tmp_path, starting=starting), Storage.of(tmp_path))
    config = given["run_config"].failure_config
    assert (config.max_failures, config.controller_failure_limit) == limits


def test_one_host_of_a_slice_does_not_wait_for_the_others(monkeypatch):
    class Here:
        def __len__(self):
            return 1

        def execute_single(self, rank, function, *args):
            told.update(args[0])

    told = {}
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    config = backend_config("xla", 60, 1, alone=True)
    config.backend_cls().on_start(Here(), config)
    assert ONE_HOST.items() <= told.items()
    told.clear()
    XlaConfig().backend_cls().on_start(Here(), XlaConfig())
    assert not ONE_HOST.keys() & told.keys()
