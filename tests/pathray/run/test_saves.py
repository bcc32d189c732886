"""What a rank does at a poll and at a save, on storage that is out of reach; what it makes of the run's folder."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pathray.data.faults import Fault
from pathray.errors import UserError
from pathray.evaluation import results
from pathray.run import evaluations, saves, session, tick_log
from pathray.run.failure import RunFailed, SharedFailure
from pathray.run.quarantine import Faults
from pathray.run.saves import Saves
from pathray.run.session import Session
from pathray.run.stop import name_end, request_stop
from pathray.run.stop_poll import StopPoll
from pathray.run.tick_log import TickLog
from pathray.store.checkpoint import AsyncSaver
from pathray.store.storage import Storage, StorageError


class Device:
    """One rank that meets nobody."""

    def __init__(self, rank=0):
        self.rank, self.told = rank, []

    def broadcast_object(self, value):
        self.told.append(value)
        return value

    def gather_objects(self, value):
        return [value]


BUCKET = SimpleNamespace(local=False)


def rank(number=0, **parts):
    """A session of its parts alone."""
    own = Session.__new__(Session)
    own.failure = SharedFailure(number, "run")
    own.device, own.saves = Device(number), SimpleNamespace(saver=AsyncSaver())
    own.tick_log = SimpleNamespace(check=lambda: None)
    vars(own).update(parts)
    return own


def test_a_run_that_failed_asks_no_more_whether_to_stop(tmp_path):
    store = Storage.of(tmp_path)
    with StopPoll(store, every_s=3600.0) as poll:
        own = rank(store=store, stop_poll=poll)
        assert not own._is_stop_requested()
        own.failure.error = UserError("the disk is full")
        assert own._is_stop_requested()
        own.failure.error = None
        request_stop(str(tmp_path))
        assert own._is_stop_requested(), "a disk is asked at every poll"


def test_a_save_that_failed_in_the_background_ends_the_run_at_the_next_poll():
    def check():
        raise StorageError("cannot write: no space left", file="checkpoints")

    poll = SimpleNamespace(is_requested=lambda: False)
    asked = rank(saves=SimpleNamespace(saver=SimpleNamespace(check=check)), store=BUCKET, stop_poll=poll)
    assert asked._is_stop_requested()
    with pytest.raises(RunFailed, match="no space left"):
        asked.failure.check()


def test_what_storage_refuses_ends_another_rank_than_the_first_at_once():
    with pytest.raises(StorageError), SharedFailure(1, "run").keep_error():
        raise OSError(28, "No space left on device")


def test_a_checkpoint_is_due_when_the_newest_is_so_many_minutes_old(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(saves.time, "monotonic", lambda: clock[0])
    own = Saves.__new__(Saves)
    own.parts, own.saved_at = SimpleNamespace(latest_minutes=10.0), 1000.0
    assert not own.is_due()
    clock[0] += 600
    assert own.is_due()
    own.parts.latest_minutes = 0.0
    assert not own.is_due()


def test_how_far_a_local_run_is_is_left_every_few_seconds_by_rank_0_only(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(tick_log.time, "monotonic", lambda: clock[0])
    store = Storage.of(tmp_path)
    logs = [TickLog(store, Device(number), None, None, SharedFailure(number, "run")) for number in (1, 0)]
    for number, own in zip((1, 0), logs, strict=True):
        own.beat(8)
        assert store.exists("progress.json") == (number == 0)
    logs[1].beat(16)
    assert json.loads(store.read_bytes("progress.json"))["images_seen"] == 8
    clock[0] += 5
    logs[1].beat(24)
    assert json.loads(store.read_bytes("progress.json"))["images_seen"] == 24
    logs[1].end(32, "budget")
    assert json.loads(store.read_bytes("progress.json"))["end"] == "budget"


class Events(list):
    """What happens at a save, in order: parts written, ranks met, the checkpoint begun."""

    def __init__(self, number, *, full=False):
        self.full, self.rank, self.url, self.stored = full, number, "run", True

    def join(self, name):
        return name

    def write_bytes(self, name, content):
        if self.full:
            raise StorageError("cannot write: no space left", file=name)
        self.append(name.partition("/")[0])

    def gather_objects(self, value):
        self.append("all ranks are here")
        return [value]

    def flush(self, timeout):
        self.append("metrics")
        return self.stored


def saving(number, events):
    """A save on one rank that has met an unreadable unit; how it failed."""
    failure = SharedFailure(number, "run")
    faults = Faults(events, pa.table({"slide_id": ["s0"]}), number)
    faults.found.append(Fault(5, 0, 17, 0, "missing", "a.tiff", "", False))
    own = Saves(None, events, events, failure, faults, events if number == 0 else None)
    own._save_checkpoint = lambda *given: events.append("checkpoint")
    own.save(SimpleNamespace(tensors=dict, images_seen=8))
    return failure


def test_a_checkpoint_is_begun_when_every_rank_has_listed_its_unreadable_units():
    for number, expected in ((0, ["checkpoint"]), (1, [])):
        events = Events(number)
        saving(number, events)
        assert events == ["quarantine", "all ranks are here", *expected]


def test_rows_of_metrics_are_on_storage_before_a_checkpoint_counts_and_only_the_owner_commits():
    events = Events(0)
    own = Saves(None, events, events, SharedFailure(0, "run"), None, events, guard=lambda: events.append("owner"))
    own._before_commit()
    assert events == ["metrics", "owner"], "rows may wait for so long that another start takes over meanwhile"
    events.stored = False
    with pytest.raises(StorageError, match="rows of metrics wait") as e:
        own._before_commit()
    assert e.value.passing, "it is tried again"


def test_where_the_list_cannot_be_written_no_checkpoint_is_begun_and_no_rank_waits_for_ever():
    events = Events(0, full=True)
    failure = saving(0, events)
    assert events == ["all ranks are here"] and isinstance(failure.error, StorageError)
    with pytest.raises(StorageError):  # another rank ends by it, and so the group
        saving(1, Events(1, full=True))


def test_which_saves_are_snapshots_for_evaluators_and_what_their_numbers_are():
    saved = []
    own = Saves.__new__(Saves)
    own.parts = SimpleNamespace(settings=SimpleNamespace(snapshot_every=100), tuning=None)
    own.save = lambda state, snapshot=None: saved.append(snapshot)

    def save(images, snapshot=False, end=None):
        own.save_tick(SimpleNamespace(images_seen=images, snapshot=snapshot, end=end, state=None))
        return saved.pop()

    assert save(96) is None and save(104, snapshot=True) == 1 and save(200, snapshot=True) == 2
    assert save(250, end="budget") is None, "without evaluators the last state is a checkpoint like others"
    own.parts.tuning = object()
    assert save(250, end="budget") == 3 and save(300, snapshot=True, end="budget") == 3
    assert save(150, end="stopped") is None, "an interrupted run resumes"


@pytest.mark.parametrize(("tuning", "numbers"), [(None, [None, None]), (object(), [None, 3])])
def test_only_snapshots_for_evaluators_have_a_number_and_may_be_removed_by_them(tmp_path, tuning, numbers):
    saved = []
    own = Saves.__new__(Saves)
    own.parts = SimpleNamespace(
        tag="t", identity={"hash": "h"}, placement={}, science="s", keep_last_n=2, encoder=None, tuning=tuning
    )
    own.saver = SimpleNamespace(save=lambda root, name, tensors, meta, *more: saved.append(meta))
    own.fit_id, own.root = "f", str(tmp_path)
    state = SimpleNamespace(images_seen=300, meta=lambda: {"images_seen": 300})
    for snapshot in (None, 3):
        own._save_checkpoint(state, {}, snapshot)
    assert [meta.get("tune_index") for meta in saved] == numbers


def test_a_stop_that_an_evaluator_asked_for_ends_the_run_as_early_stopped(tmp_path):
    store = Storage.of(tmp_path)
    assert name_end("budget", store, 0, 8) == "budget" and name_end("stopped", store, 0, 8) == "stopped"
    request_stop(str(tmp_path))
    assert name_end("stopped", store, 0, 8) == "stopped", "somebody's own wish"
    request_stop(str(tmp_path), "early_stopped")
    assert name_end("stopped", store, 0, 8) == "early_stopped" and name_end("budget", store, 0, 8) == "budget"
    assert name_end("stopped", store, 1, 8) == "stopped", "rank 0 tells"


@pytest.mark.parametrize("text", [b"", b"enough for today", b"5", b"\xff\xfe"])
def test_a_stop_written_by_hand_ends_the_run_whatever_is_in_it(tmp_path, text):
    (tmp_path / "STOP").write_bytes(text)
    store = Storage.of(tmp_path)
    with StopPoll(store, every_s=3600.0) as poll:
        assert poll.look_now()
    assert name_end("stopped", store, 0, 8) == "stopped"


def test_in_sync_mode_a_rank_waits_until_the_snapshot_is_judged_and_no_longer_than_anybody_judges(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluations, "SYNC_POLL_S", 0.0)
    asked = []

    def is_evaluated(run_dir, images):
        asked.append(images)
        return len(asked) >= 3

    tuning = SimpleNamespace(execution=SimpleNamespace(mode="sync"))
    own = Saves.__new__(Saves)
    own.store, own.device, own.parts = Storage.of(tmp_path), Device(), SimpleNamespace(tuning=tuning)
    own.failure, own.saver = SharedFailure(0, "run"), AsyncSaver()
    monkeypatch.setattr(results, "is_evaluated", is_evaluated)
    monkeypatch.setattr(results, "has_live_evaluator", lambda run_dir: True)
    own._wait_for_evaluation(8)
    assert asked == [8, 8, 8]
    asked.clear()
    monkeypatch.setattr(results, "is_evaluated", lambda run_dir, images: asked.append(images))
    monkeypatch.setattr(results, "has_live_evaluator", lambda run_dir: len(asked) < 2)
    own._wait_for_evaluation(16)
    assert asked == [16, 16]
    tuning.execution.mode = "async"
    own._wait_for_evaluation(24)
    assert asked == [16, 16]


@pytest.mark.parametrize("out_of_reach", ["is_evaluated", "has_live_evaluator"])
def test_in_sync_mode_storage_out_of_reach_does_not_end_the_training(tmp_path, monkeypatch, out_of_reach):
    def fails(*_):
        raise StorageError("cannot read: 503", file="gs://b/robustness.jsonl")

    monkeypatch.setattr(results, "is_evaluated", lambda run_dir, images: False)
    monkeypatch.setattr(results, out_of_reach, fails)
    device = Device()
    evaluations.wait_for_evaluation(Storage.of(tmp_path), 8, device, SharedFailure(0, "run"))
    assert device.told == [True]


def test_preemption_is_asked_on_its_cadence_only():
    asked = []
    settings = SimpleNamespace(preemption=lambda: asked.append(1) or True, preemption_every_steps=3)
    own = rank(settings=settings)
    assert [step for step in range(1, 8) if own._is_preempted(step)] == [3, 6] and len(asked) == 2
    assert session.RunSettings().preemption is None
