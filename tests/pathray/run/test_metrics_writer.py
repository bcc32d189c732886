"""Rows reach metrics.jsonl in order and once, however long storage is away, and no step waits for it."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import pathray.store.metrics_log
from pathray.run.fence import Superseded
from pathray.run.metrics_writer import MetricsWriter
from pathray.store.metrics_log import MetricsLog, line_of
from pathray.store.storage import StorageError
from tests.builders.bucket import BucketFileSystem, away
from tests.builders.jobs import wait_for
from tests.builders.storage import FaultyFileSystem, full


@pytest.fixture(params=["local", "bucket"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    folder = str(tmp_path / "run") if request.param == "local" else "bucket://store/run"
    return f"{folder}/metrics.jsonl"


@pytest.fixture
def faulty() -> Iterator[str]:
    FaultyFileSystem.reset()
    yield "faulty://bucket/run/metrics.jsonl"
    FaultyFileSystem.reset()


def seen(path: str) -> list[int]:
    return [row["images_seen"] for row in MetricsLog(path).read()]


def writes() -> int:
    return sum(operation == "write" for operation, _ in FaultyFileSystem.calls)


def test_rows_are_there_in_order_after_a_flush_and_after_the_end(path: str) -> None:
    writer = MetricsWriter(path, flush_every_s=1e9)
    for n in range(50):
        writer.append({"images_seen": n, "loss": n / 10})
    assert writer.flush(60) and seen(path) == list(range(50))
    writer.append({"images_seen": 50})
    writer.close()
    writer.close()
    assert seen(path) == list(range(51)) and MetricsLog(path).read()[7]["loss"] == 0.7


def test_a_row_has_the_time_of_its_step_and_not_of_its_upload(path: str) -> None:
    writer = MetricsWriter(path)
    held = threading.Event()
    writer._guard = lambda: held.wait(60) and None
    before = time.time()
    writer.append({"images_seen": 1})
    after = time.time()
    time.sleep(0.2)
    held.set()
    writer.close()
    (row,) = MetricsLog(path).read()
    assert before - 0.001 <= row["time"] <= after + 0.001


def test_a_resume_cuts_back_before_the_first_row(path: str) -> None:
    first = MetricsWriter(path)
    for n in (10, 20, 30):
        first.append({"images_seen": n})
    first.close()
    guarded: list[bool] = []
    second = MetricsWriter(path, lambda: guarded.append(True))
    assert second.cut_back(20) == 1 and guarded == [True]
    second.append({"images_seen": 25})
    second.close()
    assert seen(path) == [10, 20, 25]


def test_a_step_does_not_wait_while_a_bucket_hangs(faulty: str) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def hang(operation: str, path: str) -> Exception | None:
        if operation == "write":
            writing.set()
            go_on.wait(60)
        return None

    FaultyFileSystem.fault = staticmethod(hang)
    writer = MetricsWriter(faulty)
    writer.append({"images_seen": 0})
    assert writing.wait(60)
    for n in range(1, 100):
        writer.append({"images_seen": n})
        writer.check()
    assert not writer.flush(timeout=0.05)
    go_on.set()
    writer.close()
    assert seen(faulty) == list(range(100))


def test_many_rows_are_one_upload(faulty: str) -> None:
    writer = MetricsWriter(faulty, flush_every_s=1e9)
    for n in range(100):
        writer.append({"images_seen": n})
    writer.flush()
    writer.flush()
    assert writes() <= 2 and len(seen(faulty)) == 100
    writer.close()
    assert writes() <= 2


def test_rows_are_uploaded_by_themselves_now_and_then(faulty: str) -> None:
    writer = MetricsWriter(faulty, flush_every_s=0.05)
    for n in range(3):
        writer.append({"images_seen": n})
        time.sleep(0.02)
    wait_for(lambda: seen(faulty) == [0, 1, 2], seconds=30)
    writer.close()


def test_rows_wait_in_memory_while_a_bucket_is_away_and_are_written_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    path = "bucket://store/run/metrics.jsonl"
    MetricsLog(path).append({"images_seen": 0})
    away().touch()
    writer = MetricsWriter(path, flush_every_s=0.0, first_pause_s=0.01)
    for n in range(1, 20):
        writer.append({"images_seen": n})
        writer.check()
    wait_for(lambda: "metrics wait in memory" in caplog.text, seconds=30)
    assert not writer.flush(timeout=0.2)
    away().unlink()
    assert writer.flush(60) and seen(path) == list(range(20))
    writer.close()
    assert caplog.text.count("metrics wait in memory") == 1


def test_a_run_that_ends_while_storage_is_away_says_that_rows_are_lost(faulty: str) -> None:
    FaultyFileSystem.fault = staticmethod(lambda operation, path: OSError("503: unavailable"))
    writer = MetricsWriter(faulty, first_pause_s=0.01)
    writer.append({"images_seen": 1})
    with pytest.raises(StorageError, match="503"):
        writer.close(timeout=0.3)


def test_what_can_never_be_written_is_raised_at_the_next_check(faulty: str) -> None:
    FaultyFileSystem.fault = staticmethod(full)
    writer = MetricsWriter(faulty)
    writer.append({"images_seen": 1})
    with pytest.raises(StorageError, match="No space left on device"):
        writer.flush(60)
    for ask in (writer.check, writer.flush, writer.close):
        with pytest.raises(StorageError, match="No space left on device"):
            ask()
    assert writes() == 1, "it is not tried again"


def test_a_full_disk_ends_it_too_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathray.store.metrics_log, "open", refuse, raising=False)
    writer = MetricsWriter(str(tmp_path / "metrics.jsonl"))
    writer.append({"images_seen": 1})
    with pytest.raises(StorageError, match="No space left on device .*metrics.jsonl"):
        writer.flush(60)


def test_an_attempt_that_was_replaced_writes_no_row(path: str) -> None:
    def superseded() -> None:
        raise Superseded("another start has taken over this run")

    writer = MetricsWriter(path, superseded)
    with pytest.raises(Superseded):
        writer.cut_back(0)
    writer.append({"images_seen": 1})
    with pytest.raises(Superseded):
        writer.flush(60)
    assert seen(path) == []


def test_a_bad_row_is_the_steps_error_and_not_the_threads(path: str) -> None:
    writer = MetricsWriter(path)
    with pytest.raises(AssertionError):
        writer.append({"loss": 1.0})
    with pytest.raises(TypeError):
        writer.append({"images_seen": 1, "loss": object()})
    writer.append({"images_seen": 2})
    writer.close()
    assert seen(path) == [2]


@pytest.mark.parametrize("written", ["nothing", "a part", "all"])
def test_a_row_that_a_disk_wrote_in_part_before_it_failed_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(str(path), first_pause_s=0.01)
    writer.append({"images_seen": 1})
    writer.flush()
    failed: list[bool] = []

    class Failing:
        def __init__(self, name: str, mode: str) -> None:
            self.file = open(name, mode)

        def __enter__(self) -> Failing:
            return self

        def write(self, line: bytes) -> None:
            part = {"nothing": 0, "a part": len(line) // 2, "all": len(line)}[written]
            self.file.write(line if failed else line[:part])

        def __exit__(self, *error: object) -> None:
            self.file.close()
            if not failed:
                failed.append(True)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(pathray.store.metrics_log, "open", Failing, raising=False)
    for n in (2, 3):
        writer.append({"images_seen": n})
    writer.close()
    assert failed and seen(str(path)) == [1, 2, 3]


def test_the_same_line_is_what_the_log_writes_itself(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    line = line_of({"images_seen": 1, "loss": 0.5})
    log.append_line(line)
    assert (tmp_path / "metrics.jsonl").read_bytes() == line and log.read()[0]["loss"] == 0.5
