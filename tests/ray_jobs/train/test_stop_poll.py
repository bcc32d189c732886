"""What a rank does at a poll and at a save, on storage that is out of reach. Starts no Ray."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pathray.data.faults import Fault
from pathray.errors import UserError
from pathray.store.checkpoint import AsyncSaver
from pathray.store.storage import Storage, StorageError
from ray_jobs.train.worker import _Worker


class Store:
    def __init__(self, *answers):
        self.answers = list(answers)

    def exists(self, name):
        assert name == "STOP"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def rank(number=0, **parts):
    """A worker of its parts alone."""
    worker = _Worker.__new__(_Worker)
    vars(worker).update(rank=number, failed=None, saver=AsyncSaver(), faults=[], faults_since=0)
    vars(worker).update(parts)
    return worker


def test_storage_out_of_reach_does_not_end_a_run_that_asks_whether_to_stop():
    worker = rank(store=Store(False, StorageError("cannot read: 503", file="gs://b/STOP"), True))
    assert [worker._stop_requested() for _ in range(3)] == [False, False, True]
    worker.failed = UserError("the disk is full")
    assert worker._stop_requested() and worker.store.answers == []


def test_a_save_that_failed_in_the_background_ends_the_run_at_the_next_poll():
    def check():
        raise StorageError("cannot write: no space left", file="checkpoints")

    worker = rank(saver=SimpleNamespace(check=check), store=Store())
    assert worker._stop_requested()
    assert isinstance(worker.failed, StorageError) and "no space left" in str(worker.failed)


def test_a_checkpoint_is_due_when_the_newest_is_so_many_minutes_old(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("ray_jobs.train.worker.time.monotonic", lambda: clock[0])
    worker = rank(parts=SimpleNamespace(latest_minutes=10.0), saved_at=1000.0)
    assert not worker._save_is_due()
    clock[0] += 600
    assert worker._save_is_due()
    worker.parts.latest_minutes = 0.0
    assert not worker._save_is_due()


def test_how_far_a_local_run_is_is_left_every_few_seconds_by_rank_0_only(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("ray_jobs.train.worker.time.monotonic", lambda: clock[0])
    store = Storage.of(tmp_path)
    workers = [rank(number, store=store, beat_at=0.0) for number in (1, 0)]
    for worker in workers:
        worker._beat(8)
        assert store.exists("progress.json") == (worker.rank == 0)
    workers[1]._beat(16)
    assert json.loads(store.read_bytes("progress.json"))["images_seen"] == 8
    clock[0] += 5
    workers[1]._beat(24)
    assert json.loads(store.read_bytes("progress.json"))["images_seen"] == 24


class Events(list):
    """What happens at a save, in order: parts written, ranks met, the checkpoint begun."""

    def __init__(self, *, full=False):
        self.full = full

    def write_bytes(self, name, content):
        if self.full:
            raise StorageError("cannot write: no space left", file=name)
        self.append(name.partition("/")[0])

    def gather_objects(self, value):
        self.append("all ranks are here")
        return [value]

    def flush(self):
        self.append("metrics")


def saving(number, events):
    """A save on one rank that has met an unreadable unit; the worker."""
    plan = SimpleNamespace(sources=pa.table({"slide_id": ["s0"]}))
    fault = Fault(5, 0, 17, 0, "missing", "a.tiff", "", False)
    worker = rank(number, store=events, device=events, plan=plan, faults=[fault], log=events if number == 0 else None)
    worker._save_checkpoint = lambda *given: events.append("checkpoint")
    worker._save_state(SimpleNamespace(tensors=dict, images_seen=8))
    return worker


def test_a_checkpoint_is_begun_when_every_rank_has_listed_its_unreadable_units():
    for number, expected in ((0, ["metrics", "checkpoint"]), (1, [])):
        events = Events()
        saving(number, events)
        assert events == ["quarantine", "all ranks are here", *expected]


def test_where_the_list_cannot_be_written_no_checkpoint_is_begun_and_no_rank_waits_for_ever():
    events = Events(full=True)
    worker = saving(0, events)
    assert events == ["all ranks are here"] and isinstance(worker.failed, StorageError)
    with pytest.raises(StorageError):  # another rank ends by it, and so the group
        saving(1, Events(full=True))


def test_which_saves_are_snapshots_for_evaluators_and_what_their_numbers_are():
    saved = []
    worker = rank(parts=SimpleNamespace(settings=SimpleNamespace(snapshot_every=100), tuning=None))
    worker._save_state = lambda state, snapshot=None: saved.append(snapshot)

    def save(images, snapshot=False, end=None):
        worker._save(SimpleNamespace(images_seen=images, snapshot=snapshot, end=end, state=None))
        return saved.pop()

    assert save(96) is None and save(104, snapshot=True) == 1 and save(200, snapshot=True) == 2
    assert save(250, end="budget") is None, "without evaluators the last state is a checkpoint like others"
    worker.parts.tuning = object()
    assert save(250, end="budget") == 3 and save(300, snapshot=True, end="budget") == 3
    assert save(150, end="stopped") is None, "a run that is interrupted goes on"


def test_a_stop_that_an_evaluator_asked_for_ends_the_run_as_early_stopped(tmp_path):
    from pathray.run.stop import request_stop

    worker = rank(store=Storage.of(tmp_path))
    assert worker._reason("budget", 8) == "budget" and worker._reason("stopped", 8) == "stopped"
    request_stop(str(tmp_path))
    assert worker._reason("stopped", 8) == "stopped", "somebody's own wish"
    request_stop(str(tmp_path), "early_stopped")
    assert worker._reason("stopped", 8) == "early_stopped" and worker._reason("budget", 8) == "budget"
    (tmp_path / "STOP").write_bytes(b"")
    assert worker._reason("stopped", 8) == "stopped", "touched by hand"


def test_in_sync_mode_a_rank_waits_until_the_snapshot_is_judged_and_no_longer_than_anybody_judges(
    tmp_path, monkeypatch
):
    from pathray.evaluation import results

    monkeypatch.setattr("ray_jobs.train.worker.SYNC_POLL_S", 0.0)
    asked = []

    def judged(run_dir, images):
        asked.append(images)
        return len(asked) >= 3

    tuning = SimpleNamespace(execution=SimpleNamespace(mode="sync"))
    device = SimpleNamespace(broadcast_object=lambda value: value)
    worker = rank(store=Storage.of(tmp_path), device=device, parts=SimpleNamespace(tuning=tuning))
    monkeypatch.setattr(results, "judged", judged)
    monkeypatch.setattr(results, "watched", lambda run_dir: True)
    worker._wait_for_evaluation(8)
    assert asked == [8, 8, 8]
    asked.clear()
    monkeypatch.setattr(results, "judged", lambda run_dir, images: asked.append(images))
    monkeypatch.setattr(results, "watched", lambda run_dir: len(asked) < 2)
    worker._wait_for_evaluation(16)
    assert asked == [16, 16]
    tuning.execution.mode = "async"
    worker._wait_for_evaluation(24)
    assert asked == [16, 16]
