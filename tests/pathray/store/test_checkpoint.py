"""Checkpoints are whole or absent, tensors and plain values only, and never silently another run's."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import pathray.store.storage
from pathray.device import Device
from pathray.errors import MissingFile, UserError
from pathray.fingerprint import fingerprint
from pathray.store import checkpoint
from pathray.store.committed import COMMITTED, list_committed, read_committed
from pathray.store.storage import Storage, StorageError, digest_of
from pathray.train.loop import run
from pathray.train.state import TrainState
from tests.builders.bucket import BucketFileSystem, away
from tests.builders.jobs import wait_for
from tests.builders.runs.ranks import two_phase_settings
from tests.builders.runs.recipes import TwoPhases, stream
from tests.builders.storage import FaultyFileSystem, full

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden_checkpoint_v1" / "toy-latest-00000001"


def some_tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "weights": torch.randn(3, 4, generator=g),
        "transposed": torch.randn(3, 4, generator=g).T,
        "half": torch.randn(5, generator=g).to(torch.bfloat16),
        "count": torch.tensor(2**40),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "double": torch.randn(2, generator=g, dtype=torch.float64),
    }


@pytest.fixture(params=["local", "faulty"])
def parent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    return str(tmp_path / "run") if request.param == "local" else "faulty://bucket/run"


def test_tensors_of_every_kind_come_back_with_their_bits(parent: str) -> None:
    tensors = some_tensors()
    saved = checkpoint.save(parent, "t-latest", tensors, {"images_seen": 8, "note": "ü", "none": None})
    loaded, meta = checkpoint.load(saved.path)
    assert set(loaded) == set(tensors)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value), name
    assert meta["images_seen"] == 8 and meta["note"] == "ü" and meta["none"] is None


def test_tied_tensors_are_saved_each(parent: str) -> None:
    shared = torch.ones(4)
    saved = checkpoint.save(parent, "t-latest", {"a": shared, "b": shared[:2]}, {"images_seen": 1})
    loaded, _ = checkpoint.load(saved.path)
    assert loaded["a"].tolist() == [1] * 4 and loaded["b"].tolist() == [1] * 2


def test_there_is_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), "t-latest", some_tensors(), {"images_seen": 1})
    assert sorted(os.listdir(saved.path)) == [COMMITTED, checkpoint.TENSORS]
    header = Path(saved.path, checkpoint.TENSORS).read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert set(json.loads(header[8 : 8 + size])) >= {"weights", "count"}  # the documented layout of safetensors
    json.loads(Path(saved.path, COMMITTED).read_text(), parse_constant=pytest.fail)


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), "t-latest", some_tensors(), {"images_seen": 1})
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert {p.stat().st_mode for p in Path(saved.path).iterdir()} == {plain}


def test_the_newest_is_the_one_that_saw_most_images(parent: str) -> None:
    for name, images in (("t-latest", 30), ("t-img40", 40), ("t-latest", 20), ("t-best", 10), ("other-latest", 99)):
        checkpoint.save(parent, name, {"x": torch.tensor(images)}, {"images_seen": images})
    newest = checkpoint.latest(parent, "t")
    assert newest is not None and newest.name == "t-img40"
    assert checkpoint.latest(parent, "nobody") is None and checkpoint.latest(parent + "/nowhere", "t") is None


def test_a_tag_that_begins_like_another_is_another(parent: str) -> None:
    checkpoint.save(parent, "run-2-latest", {"x": torch.zeros(1)}, {"images_seen": 5})
    assert checkpoint.latest(parent, "run") is None


def test_retention_keeps_the_last_n_of_a_name_and_what_is_protected(parent: str) -> None:
    paths = {
        images: checkpoint.save(parent, "t-latest", {"x": torch.zeros(1)}, {"images_seen": images}).path
        for images in (1, 2, 3, 4, 5)
    }
    other = checkpoint.save(parent, "t-img1", {"x": torch.zeros(1)}, {"images_seen": 1}).path
    removed = checkpoint.prune(parent, "t-latest", 2, protect=[paths[1]])
    assert removed == [paths[2], paths[3]]
    assert {c.path for c in list_committed(parent)} == {paths[1], paths[4], paths[5], other}


@pytest.mark.parametrize("refused", ["remove", "list"])
def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning_and_goes_at_the_next_time(
    refused: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.0)
    FaultyFileSystem.reset()
    root = "faulty://bucket/run"
    first, second, third = (
        checkpoint.save(root, "t-latest", {"x": torch.zeros(1)}, {"images_seen": n}).path for n in (1, 2, 3)
    )

    def fault(operation: str, path: str) -> Exception | None:
        if refused == "list":
            return OSError("unavailable") if operation == "read" else None
        return OSError("unavailable") if operation == "remove" and first.removeprefix("faulty:/") in path else None

    FaultyFileSystem.fault = staticmethod(fault)
    assert checkpoint.prune(root, "t-latest", 1) == ([second] if refused == "remove" else [])
    assert "cannot be removed now" in caplog.text and "unavailable" in caplog.text
    FaultyFileSystem.fault = None
    checkpoint.prune(root, "t-latest", 1)
    assert [c.path for c in list_committed(root)] == [third]


def test_a_failed_save_can_be_asked_for_without_waiting_and_is_told_once() -> None:
    FaultyFileSystem.reset()
    begun, go_on = threading.Event(), threading.Event()

    def held(operation: str, path: str) -> Exception | None:
        begun.set()
        go_on.wait(60)
        return full(operation, path)

    saver = checkpoint.AsyncSaver()
    saver.check()
    FaultyFileSystem.fault = staticmethod(held)
    saver.save("faulty://bucket/run", "t-latest", some_tensors(), {"images_seen": 1})
    assert begun.wait(60)
    saver.check()  # while it is being written
    go_on.set()
    (thread,) = [t for t in threading.enumerate() if t.name == "pathray-save"]
    thread.join(60)
    with pytest.raises(StorageError, match="No space left on device"):
        saver.check()
    saver.check()
    saver.wait()


def test_saving_in_the_background_takes_a_copy_at_once(parent: str) -> None:
    live = {"x": torch.ones(1000)}
    with checkpoint.AsyncSaver() as saver:
        saver.save(parent, "t-latest", live, {"images_seen": 1})
        live["x"].zero_()
        saver.save(parent, "t-latest", live, {"images_seen": 2})
    first, second = (checkpoint.load(c.path)[0]["x"] for c in list_committed(parent))
    assert first.sum() == 1000 and second.sum() == 0
    assert saver.last is not None and saver.last.meta["images_seen"] == 2


def test_an_error_in_the_background_comes_at_the_next_save_or_close() -> None:
    FaultyFileSystem.reset(full)
    saver = checkpoint.AsyncSaver()
    saver.save("faulty://bucket/run", "t-latest", some_tensors(), {"images_seen": 1})
    with pytest.raises(StorageError, match="No space left on device"):
        saver.close()
    FaultyFileSystem.fault = None
    saver.save("faulty://bucket/run", "t-latest", some_tensors(), {"images_seen": 2})
    saver.close()
    newest = checkpoint.latest("faulty://bucket/run", "t")
    assert newest is not None and newest.meta["images_seen"] == 2


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An object store that is away while its file `away` is there."""
    monkeypatch.setattr(pathray.store.storage, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    return "bucket://store/run"


@pytest.mark.parametrize("when", ["before", "at the commit"])
def test_a_save_outlasts_an_outage_while_training_goes_on(
    bucket: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(bucket, "t-latest", {"x": torch.zeros(3)}, {"images_seen": 1})
    live, commits = some_tensors(), list[int]()
    wanted = {name: t.clone() for name, t in live.items()}

    def leave() -> None:
        commits.append(1)
        if len(commits) == 1 and when == "at the commit":
            away().touch()

    if when == "before":
        away().touch()
    with checkpoint.AsyncSaver(first_pause_s=0.02) as saver:
        saver.save(bucket, "t-latest", live, {"images_seen": 2}, before_commit=leave)
        live["weights"].zero_()
        wait_for(lambda: "the checkpoint waits for storage; retrying" in caplog.text, seconds=30)
        saver.check()  # no error: it is still being tried
        assert saver.last is None
        away().unlink()
    newest = checkpoint.latest(bucket, "t")
    assert newest == saver.last and newest is not None and newest.meta["images_seen"] == 2
    loaded, _ = checkpoint.load(newest.path)
    assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in wanted.items())
    assert [c.meta["images_seen"] for c in list_committed(bucket)] == [1, 2], "nothing half-written counts"


def test_a_save_that_comes_due_in_an_outage_waits_for_the_one_before(bucket: str) -> None:
    away().touch()
    back = threading.Timer(0.3, away().unlink)
    with checkpoint.AsyncSaver(first_pause_s=0.01) as saver:
        saver.save(bucket, "t-latest", {"x": torch.ones(3)}, {"images_seen": 1})
        back.start()
        saver.save(bucket, "t-latest", {"x": torch.ones(3)}, {"images_seen": 2})
    assert [c.meta["images_seen"] for c in list_committed(bucket)] == [1, 2]


def test_a_save_that_waits_for_storage_holds_up_no_process_that_is_ended_but_everyone_who_closes(bucket: str) -> None:
    away().touch()
    with checkpoint.AsyncSaver(first_pause_s=0.01) as saver:
        saver.save(bucket, "t-latest", some_tensors(), {"images_seen": 1})
        holding = [t.name for t in threading.enumerate() if not t.daemon]  # a process ends when these have ended
        away().unlink()
    assert "pathray-save" not in holding
    assert [c.meta["images_seen"] for c in list_committed(bucket)] == [1]


def test_an_outage_longer_than_its_bound_is_an_error(bucket: str) -> None:
    away().touch()
    saver = checkpoint.AsyncSaver(outage_s=0.2, first_pause_s=0.01)
    saver.save(bucket, "t-latest", some_tensors(), {"images_seen": 1})
    with pytest.raises(StorageError, match="503"):
        saver.close()


def test_what_no_later_try_can_mend_is_not_tried_again() -> None:
    FaultyFileSystem.reset(full)
    saver = checkpoint.AsyncSaver(first_pause_s=3600.0)
    saver.save("faulty://bucket/run", "t-latest", some_tensors(), {"images_seen": 1})
    with pytest.raises(StorageError, match="No space left on device"):
        saver.close()
    assert sum(operation == "write" for operation, _ in FaultyFileSystem.calls) == 1


def test_what_has_to_be_there_before_a_checkpoint_comes_before_its_commit(parent: str) -> None:
    def refuse() -> None:
        assert list_committed(parent) == []
        raise UserError("another start has taken over this run")

    saver = checkpoint.AsyncSaver()
    saver.save(parent, "t-latest", some_tensors(), {"images_seen": 1}, before_commit=refuse)
    with pytest.raises(UserError, match="another start"):
        saver.close()
    assert list_committed(parent) == []


def test_a_disk_full_while_saving_leaves_the_previous_checkpoint_as_the_newest() -> None:
    FaultyFileSystem.reset()
    root = "faulty://bucket/run"
    checkpoint.save(root, "t-latest", some_tensors(), {"images_seen": 1})
    for victim in (checkpoint.TENSORS, COMMITTED):
        FaultyFileSystem.fault = staticmethod(lambda op, path, v=victim: full(op, path) if path.endswith(v) else None)
        with pytest.raises(StorageError, match=f"cannot write: No space left on device .*{victim}"):
            checkpoint.save(root, "t-latest", some_tensors(), {"images_seen": 2})
    FaultyFileSystem.fault = None
    newest = checkpoint.latest(root, "t")
    assert newest is not None and newest.meta["images_seen"] == 1 and checkpoint.load(newest.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte; mounting it needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_leaves_the_previous_checkpoint_and_a_clear_error(small_disk: Path) -> None:
    root = str(small_disk / "run")
    checkpoint.save(root, "t-latest", {"x": torch.zeros(50_000)}, {"images_seen": 1})
    with pytest.raises(StorageError, match="No space left on device") as e:
        checkpoint.save(root, "t-latest", {"x": torch.zeros(500_000)}, {"images_seen": 2})
    assert str(small_disk) in str(e.value)
    newest = checkpoint.latest(root, "t")
    assert newest is not None and newest.meta["images_seen"] == 1
    assert checkpoint.load(newest.path)[0]["x"].shape == (50_000,)
    assert len(Storage.of(root).list()) == 1, "what could not be committed was cleared away"


def test_a_file_size_limit_is_an_error_like_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save(str(tmp_path), "t-latest", {"x": torch.zeros(10)}, {"images_seen": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError) as e:
            checkpoint.save(str(tmp_path), "t-latest", {"x": torch.zeros(100_000)}, {"images_seen": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in str(e.value)
    newest = checkpoint.latest(str(tmp_path), "t")
    assert newest is not None and newest.meta["images_seen"] == 1


KILLED_WHILE_WRITING = """
import sys, time, torch
import pathray.store.committed
from pathray.store import checkpoint
root = sys.argv[1]
checkpoint.save(root, "t-latest", {"x": torch.full((1000,), 1.0)}, {"images_seen": 1})
if sys.argv[2] == "before the commit":
    pathray.store.committed.CommittedWriter.commit = lambda self: (print("now", flush=True), time.sleep(60))
    checkpoint.save(root, "t-latest", {"x": torch.full((1000,), 2.0)}, {"images_seen": 2})
print("now", flush=True)
for i in range(2, 100000):
    checkpoint.save(root, "t-latest", {"x": torch.full((1 << 20,), float(i))}, {"images_seen": i})
"""


@pytest.mark.parametrize("when", ["before the commit", "anywhere"])
def test_sigkill_in_the_middle_of_a_checkpoint_leaves_only_whole_ones(tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), when]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout is not None and child.stdout.readline() == b"now\n"
    if when == "anywhere":
        time.sleep(0.25)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    begun = Storage.of(tmp_path).list()
    whole = list_committed(str(tmp_path))
    for committed in whole:
        tensors, meta = checkpoint.load(committed.path)
        assert torch.equal(tensors["x"], torch.full_like(tensors["x"], float(meta["images_seen"])))
    newest = checkpoint.latest(str(tmp_path), "t")
    assert newest is not None and newest.meta["images_seen"] == max(c.meta["images_seen"] for c in whole)
    assert len(begun) - len(whole) in ((1,) if when == "before the commit" else (0, 1))
    for entry in begun:
        for path in (tmp_path / entry, *(tmp_path / entry).iterdir()):
            os.utime(path, (0, 0))
    checkpoint.prune(str(tmp_path), "t-latest", keep_last_n=1)
    assert Storage.of(tmp_path).list() == [os.path.basename(newest.path)], "the half-written one is swept"


def test_a_damaged_or_uncommitted_checkpoint_is_an_error_never_fresh_weights(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), "t-latest", some_tensors(), {"images_seen": 1})
    path = Path(saved.path, checkpoint.TENSORS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(saved.path)
    path.write_bytes(data[:-10])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(saved.path, verify=False)
    Path(saved.path, COMMITTED).unlink()
    with pytest.raises(MissingFile, match="not a committed directory"):
        checkpoint.load(saved.path)


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 99)
    saved = checkpoint.save(str(tmp_path), "t-latest", some_tensors(), {"images_seen": 1})
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer version .*found: 99"):
        checkpoint.load(saved.path)


def test_another_identity_is_refused_with_every_key_and_both_values() -> None:
    mine = fingerprint({"data": {"seed": 1, "targets": 4}, "model": {"name": "vit_tiny"}})
    other = fingerprint({"data": {"seed": 2, "targets": 4}, "model": {"name": "vit_small"}, "extra": True})
    checkpoint.check_identity({"identity": mine}, mine)
    with pytest.raises(UserError) as e:
        checkpoint.check_identity({"identity": mine}, other)
    text = str(e.value)
    assert "data.seed: 1 in the checkpoint, 2 now" in text
    assert "model.name: 'vit_tiny' in the checkpoint, 'vit_small' now" in text
    assert "extra: '(absent)' in the checkpoint, True now" in text and "targets" not in text
    assert "checkpoint.resume_changes=[data.seed, extra, model.name]" in text  # the remedy
    with pytest.raises(UserError, match="does not say"):
        checkpoint.check_identity({}, mine)


def test_another_model_is_named_by_its_first_tensors() -> None:
    own = {f"layer{i}": torch.zeros(2, i + 1) for i in range(20)}
    found: dict[str, Any] = {**own, "layer3": torch.zeros(9), "layer4": torch.zeros(2, 5, dtype=torch.float64)}
    del found["layer5"]
    with pytest.raises(UserError) as e:
        checkpoint.check_tensors(found, own)
    text = str(e.value)
    assert "layer5: missing" in text and "layer3: float32[9] in the checkpoint, float32[2, 4] here" in text
    assert "layer4: float64[2, 5]" in text
    with pytest.raises(UserError, match="and 12 more"):
        checkpoint.check_tensors({}, own)


def test_the_golden_checkpoint_of_schema_1_loads_and_training_goes_on_from_it() -> None:
    assert digest_of(GOLDEN / checkpoint.TENSORS) == read_committed(str(GOLDEN)).files[checkpoint.TENSORS]["sha256"]
    tensors, meta = checkpoint.load(str(GOLDEN))
    checkpoint.check_identity(meta, {"values": {"science": "toy", "seed": 3, "data.hash": "abc"}})
    config, device = two_phase_settings(), Device.of("cpu")
    recipe = TwoPhases()
    state = TrainState(recipe, config, device)
    state.load(tensors, meta)
    assert (state.images_seen, state.step, state.notes) == (36, 3, {"selection": {"best": 0.5}})
    assert torch.equal(recipe.modules["student"][0].weight, tensors["model.student.0.weight"])
    assert int(state.optimizers["student"].steps) == 3 and int(state.optimizers["adversary"].steps) == 2
    assert list(run(recipe, stream(config), config, device=device, state=state))[-1].step == 10
