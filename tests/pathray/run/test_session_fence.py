"""A run on storage that is away for a while, and two starts of one run: nothing is lost, and one of them writes."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pytest

from pathray.data.faults import Fault
from pathray.device import Device
from pathray.errors import UserError
from pathray.run import RunSettings, train
from pathray.run.failure import SharedFailure
from pathray.run.fence import Fence, Superseded, hold
from pathray.run.layout import LOG, OWNER, PROGRESS, QUARANTINE, memory_note
from pathray.run.memory import changes_after
from pathray.run.quarantine import Faults
from pathray.run.saves import Saves
from pathray.run.tick_log import TickLog
from pathray.store import checkpoint
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage, StorageError
from tests.builders.bucket import BucketFileSystem, away
from tests.builders.jobs import wait_for
from tests.builders.runs.toy_run import rows, train_toy
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

SLOW = {"total_images": 12 * 60, "slow_s": 0.005}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


def tensors(run):
    newest = checkpoint.latest(f"{run}/checkpoints", "toy")
    return newest.meta["images_seen"], {name: t.tolist() for name, t in checkpoint.load(newest.path)[0].items()}


def take_over(run):
    record = json.loads((run / OWNER).read_bytes()) | {"token": "another"}
    (run / OWNER).write_text(json.dumps(record))


def files_of(run):
    """All that the runs of a folder share, with what is in it; what a process says of itself is left out."""
    files = (p for p in run.rglob("*") if p.is_file() and p.name != LOG and not p.name.startswith("seen-"))
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def test_a_bucket_that_is_away_for_a_while_ends_no_run_and_loses_nothing(plan, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    monkeypatch.chdir(tmp_path)  # the toy science exports to a path and not to a URL
    run, trained = "bucket://store/run", []
    (tmp_path / "seen").mkdir()
    config = ToyConfig(run=str(tmp_path / "seen"), **SLOW)

    def outage():
        wait_for(lambda: checkpoint.latest(f"{run}/checkpoints", "toy") is not None, seconds=60)
        away().touch()
        time.sleep(2.5)
        away().unlink()

    thread = threading.Thread(target=outage)
    thread.start()
    trained.append(train(assemble(config, plan, 1), plan, run, Device.of("cpu")))
    thread.join()
    assert (trained[0].end, trained[0].images_seen) == ("budget", 720)
    assert "the checkpoint waits for storage" in caplog.text
    assert [row["images_seen"] for row in MetricsLog(f"{run}/metrics.jsonl").read()] == list(range(12, 721, 12))
    train_toy(tmp_path / "local", plan, total_images=720)
    assert tensors(run) == tensors(tmp_path / "local")
    assert not Storage.of(run).exists(OWNER)


def test_a_second_start_is_refused_and_the_first_ends_as_if_nothing_had_been(plan, tmp_path):
    run, refused = tmp_path / "run", []

    def second():
        wait_for(lambda: (run / "metrics.jsonl").exists(), seconds=60)
        with pytest.raises(UserError, match="being trained by another process") as e:
            Fence(str(run)).take()
        refused.append(str(e.value))

    thread = threading.Thread(target=second)
    thread.start()
    outcome = train_toy(run, plan, **SLOW)
    thread.join()
    assert outcome.end == "budget" and len(refused) == 1
    assert [row["images_seen"] for row in rows(run)] == list(range(12, 721, 12))
    assert not (run / OWNER).exists()


def test_an_attempt_that_another_start_replaced_ends_and_writes_no_more(plan, tmp_path):
    run, left = tmp_path / "run", []

    def replace():
        wait_for(lambda: checkpoint.latest(f"{run}/checkpoints", "toy") is not None, seconds=60)
        take_over(run)
        time.sleep(0.5)  # what was about to be written when the other began
        left.append(files_of(run))

    thread = threading.Thread(target=replace)
    thread.start()
    with pytest.raises(UserError, match="another start has taken over this run"):
        train_toy(run, plan, unreadable_every=7, save_every=240, **SLOW)
    thread.join()
    assert [files_of(run)] == left
    assert json.loads((run / OWNER).read_bytes())["token"] == "another"
    assert not (run / "encoder").exists()


def test_an_attempt_that_was_replaced_lists_no_unreadable_units_at_its_next_save(plan, tmp_path, monkeypatch):
    run, left, save = tmp_path / "run", [], Saves.save

    def replaced(self, *given, **more):
        if not left:
            take_over(run)
            left.append({name for name in files_of(run) if name.startswith("quarantine")})
        save(self, *given, **more)

    monkeypatch.setattr(Saves, "save", replaced)
    with pytest.raises(UserError, match="another start has taken over this run"):
        train_toy(run, plan, unreadable_every=5)
    assert left == [{name for name in files_of(run) if name.startswith("quarantine")}] == [set()]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_of_an_attempt_that_was_replaced_keeps_its_unreadable_units_to_itself(tmp_path, rank):
    with Fence(str(tmp_path)) as fence:
        store, failure = Storage.of(str(tmp_path)), SharedFailure(rank, str(tmp_path))
        faults = Faults(store, pa.table({"path": ["none"]}), rank, Fence.of(str(tmp_path), fence.token).check)
        saves = Saves(None, store, Device.of("cpu"), failure, faults, None)
        for images_seen, parts in ((8, 1), (16, 1)):
            faults.found.append(Fault(images_seen - 1, 0, 7, 0, "missing", "a.tiff", "", False))
            saves.save(SimpleNamespace(tensors=dict, images_seen=images_seen))
            assert len(list((tmp_path / QUARANTINE).iterdir())) == parts
            take_over(tmp_path)
        assert isinstance(failure.error, Superseded)


def test_an_attempt_that_was_replaced_at_its_end_exports_and_reports_nothing(plan, tmp_path, monkeypatch):
    run, left, close = tmp_path / "run", [], TickLog.close

    def closed(self):
        close(self)
        take_over(run)
        left.append(files_of(run))

    monkeypatch.setattr(TickLog, "close", closed)
    with pytest.raises(UserError, match="another start has taken over this run"):
        train_toy(run, plan, unreadable_every=7)
    assert [files_of(run)] == left


def test_an_attempt_that_was_replaced_while_its_export_waited_for_storage_tries_no_more(plan, tmp_path, monkeypatch):
    run, tries = tmp_path / "run", []

    def export(parts, state, store):
        assert not tries, "tried again"
        tries.append(len(tries))
        take_over(run)
        error = StorageError("no answer", file=store.url)
        error.passing = True
        raise error

    monkeypatch.setattr("pathray.run.session.export", export)
    with pytest.raises(UserError, match="another start has taken over this run"):
        train_toy(run, plan)
    assert tries == [0]


def test_an_attempt_that_was_replaced_gives_no_sign_of_life(tmp_path):
    with Fence(str(tmp_path)) as fence:
        store, failure = Storage.of(str(tmp_path)), SharedFailure(0, str(tmp_path))
        tick_log = TickLog(store, Device.of("cpu"), None, None, failure, guard=fence.check)
        take_over(tmp_path)
        tick_log.beat(8)
        assert not store.exists(PROGRESS) and isinstance(failure.error, Superseded)


def test_a_group_of_an_attempt_that_was_replaced_asks_for_no_smaller_micro_batch(tmp_path):
    with Fence(str(tmp_path)) as fence:
        store, settings = Storage.of(str(tmp_path)), SimpleNamespace(micro_batch=8, global_batch=16, whole_batch="")
        parts = SimpleNamespace(settings=settings, smaller=None)
        take_over(tmp_path)
        with pytest.raises(Superseded):
            changes_after(
                MemoryError(), store, "fit", parts, SimpleNamespace(world_size=2, local_devices=1), fence.check
            )
        assert not store.exists(memory_note("fit"))


def test_a_run_whose_driver_owns_the_folder_takes_it_not_again(plan, tmp_path):
    (tmp_path / "run").mkdir()
    with hold(str(tmp_path / "run")) as fence:
        assert train_toy(tmp_path / "run", plan, RunSettings(owner=fence.token)).end == "budget"
        fence.check()
        with hold(str(tmp_path / "run")) as same:
            assert same is fence
        fence.check()
    assert not (tmp_path / "run" / OWNER).exists()
