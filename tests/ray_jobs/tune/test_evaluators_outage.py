"""Storage that is away while snapshots are evaluated next to a training: each is evaluated once. Starts no Ray."""

import threading

import pytest

from pathray.evaluation.results import Results
from pathray.evaluation.settings import EarlyStoppingConfig, SelectionConfig
from pathray.run.fence import hold
from pathray.run.layout import STOP
from pathray.store.checkpoint import AsyncSaver
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError
from ray_jobs.tune import evaluation_runner, evaluation_trial
from tests.builders.bucket import BucketFileSystem
from tests.builders.runs.bucket_run import (
    BATCH,
    EVALUATIONS,
    KEY,
    URL,
    evaluate_snapshots,
    outage,
    register,
    train_in_bucket,
    tuning,
)
from tests.builders.runs.toy_science import write_plan
from tests.ray_jobs.tune.test_evaluators_alone import beside, result, snapshot

TOY = {"total_images": 16 * BATCH, "save_every": 2 * BATCH, "slow_s": 0.005}


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    for waits in (through_outages, AsyncSaver.__init__):
        monkeypatch.setitem(waits.__kwdefaults__, "first_pause_s", 0.05)
    monkeypatch.setattr(evaluation_runner, "REMOTE_LOOK_S", 0.01)
    monkeypatch.setattr(evaluation_trial, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(evaluation_trial, "evaluate_once", None)
    yield
    BucketFileSystem.outage = None


@pytest.mark.parametrize("stage", EVALUATIONS)
def test_every_snapshot_is_evaluated_once_though_storage_was_away(stage, tmp_path):
    request, trained = evaluation_runner.Request({"CPU": 1.0}, "cpu"), threading.Event()
    found = evaluation_runner.Evaluators(URL, tuning(), request, identity=None, tag="toy")
    found.claimed = True
    thread = threading.Thread(target=evaluate_snapshots, args=(found, trained))
    with hold(URL), outage(stage, 1.0) as away:
        thread.start()
        try:
            train_in_bucket(tmp_path / "seen", write_plan(tmp_path / "plan"), **TOY)
        finally:
            trained.set()
            thread.join()
    assert away.refused, "storage was never away"
    rows = Results(URL, None).rows
    assert sorted(row["images_seen"] for row in rows) == [4 * BATCH * number for number in range(1, 5)]
    assert all(row["status"] == "ok" and row[KEY] > 0 for row in rows)
    assert not found.owed and not found.unrecorded


def test_a_decision_and_a_stop_that_storage_did_not_take_follow_when_it_is_back(tmp_path, monkeypatch):
    stopping = EarlyStoppingConfig(True, SelectionConfig("pathorob", "hospitals", "ri"), patience_evals=1, min_evals=2)
    for index in (1, 2):
        snapshot(tmp_path, index)
    found, write = beside(tmp_path, stopping, max_pending_jobs=9), Storage.write_bytes
    found.claimed, missed = True, []

    def away(store, name, data):
        if name in ("early_stopping.json", STOP) and len(missed) < 2:
            missed.append(name)
            error = StorageError("cannot write: 503", file=name)
            error.passing = True
            raise error
        write(store, name, data)

    assert found.suggest("a")["images_seen"] == 200
    found.record_trial("a", result(0.5), False)
    found._looked = 0.0
    assert found.suggest("b")["images_seen"] == 100
    monkeypatch.setattr(Storage, "write_bytes", away)
    (tmp_path / "early_stopping.json").unlink()
    found.record_trial("b", result(0.9), False)
    assert sorted(missed) == [STOP, "early_stopping.json"] and sorted(found.owed) == ["the decision", "the stop"]
    found.suggest("c")
    assert not found.owed
    assert (tmp_path / STOP).exists() and (tmp_path / "early_stopping.json").exists()
