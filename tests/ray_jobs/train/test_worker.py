"""What a worker makes of storage that is away while it starts, and which errors a restart only meets again. No Ray."""

import json
import pickle

import pytest

from pathray.config.sections import ScalingConfig
from pathray.run.layout import fatal_note
from pathray.run.outcome import Outcome
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError
from ray_jobs.train.job import TrainJob
from ray_jobs.train.worker import train_worker
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.runs.bucket_run import register
from tests.builders.runs.toy_science import write_plan


def assemble(config, plan, world):
    return plan.rows, Storage.of("bucket://store").read_bytes("weights")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket with a plan and weights; pauses between tries are short."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    store = Storage.of("bucket://store")
    store.write_bytes("weights", b"w")
    write_plan(tmp_path / "plan")
    for file in (tmp_path / "plan").iterdir():
        store.put(file, f"plan/{file.name}")
    yield store
    BucketFileSystem.outage = None


def job(workers=1):
    scaling = ScalingConfig(accelerator="cpu", workers=workers)
    return TrainJob(assemble, None, "bucket://store/plan", "bucket://store/run", scaling, accelerator="cpu")


@pytest.mark.parametrize(("operation", "pattern"), [("look", "store/plan*"), ("read", "store/weights")])
def test_a_worker_starts_when_the_bucket_is_back(bucket, monkeypatch, operation, pattern):
    given = []

    def train(parts, plan, *more, **settings):
        given.append((parts, plan.rows))
        return Outcome("budget", 12, {}, None, None)

    monkeypatch.setattr("pathray.run.session.train", train)
    away = BucketFileSystem.outage = Outage(operation, pattern, 1.0)
    found = train_worker({"job": pickle.dumps(job())})
    assert away.refused, "storage was never away"
    assert (found["end"], found["images_seen"]) == ("budget", 12)
    (((rows, weights), planned),) = given
    assert rows == planned > 0 and weights == b"w"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("passing", [True, False])
def test_only_an_error_that_a_restart_would_meet_again_is_fatal(bucket, monkeypatch, workers, passing):
    def train(*given, **settings):
        error = StorageError("503")
        error.passing = passing
        raise error

    monkeypatch.setattr("pathray.run.session.train", train)
    one = job(workers)
    words = {"job": pickle.dumps(one)}
    if workers == 1 and not passing:
        assert train_worker(words)["fatal"]["message"] == "503"
        return
    with pytest.raises(StorageError, match="503"):
        train_worker(words)
    note, run = fatal_note(one.fit_id), bucket.at("run")
    assert run.exists(note) == (not passing)
    if not passing:
        assert json.loads(run.read_bytes(note))["message"] == "503" == train_worker(words)["fatal"]["message"]
