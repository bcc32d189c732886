"""Whether a run was asked to stop is known without waiting, whatever storage does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathray.run.layout import STOP
from pathray.run.stop_poll import StopPoll
from pathray.store.storage import Storage
from tests.builders.jobs import wait_for
from tests.builders.storage import FaultyFileSystem


@pytest.fixture
def bucket() -> Iterator[Storage]:
    FaultyFileSystem.reset()
    yield Storage.of("faulty://bucket/run")
    FaultyFileSystem.reset()


@pytest.fixture
def exists(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the bucket answers to each question."""

    def answer(how: Any) -> None:
        def info(self: FaultyFileSystem, path: str, **more: Any) -> dict[str, Any]:
            if not how(path):
                raise FileNotFoundError(path)
            return {"name": path, "size": 0, "type": "file"}

        monkeypatch.setattr(FaultyFileSystem, "info", info)

    return answer


def test_a_stop_is_seen_and_stays_seen(tmp_path: Path) -> None:
    with StopPoll(Storage.of(tmp_path), every_s=0.01) as poll:
        assert not poll.is_requested()
        (tmp_path / STOP).touch()
        wait_for(poll.is_requested, seconds=30)
        (tmp_path / STOP).unlink()
        assert poll.is_requested() and poll.look_now()


def test_the_last_look_sees_what_the_thread_has_not(tmp_path: Path) -> None:
    with StopPoll(Storage.of(tmp_path), every_s=3600.0) as poll:
        wait_for(lambda: not poll.look_now(), seconds=30)
        (tmp_path / STOP).touch()
        assert not poll.is_requested() and poll.look_now() and poll.is_requested()


def test_the_answer_does_not_wait_for_storage_that_hangs(bucket: Storage, exists: Any) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(path: str) -> bool:
        asked.set()
        return go_on.wait(60)

    exists(hang)
    poll = StopPoll(bucket, every_s=0.01)
    assert asked.wait(30) and not poll.is_requested()
    poll.close()  # not for it either
    go_on.set()
    wait_for(poll.is_requested, seconds=30)


def test_an_outage_is_logged_once_and_asked_through(
    bucket: Storage, exists: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def away(path: str) -> bool:
        asked.append(path)
        if len(asked) < 20:
            raise OSError("503: the service is unavailable")
        return len(asked) > 30

    exists(away)
    with caplog.at_level(logging.DEBUG, "pathray"), StopPoll(bucket, every_s=0.001) as poll:
        wait_for(poll.is_requested, seconds=30)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "could not look for STOP; retrying" in warning.message and "503" in warning.message
    assert len([r for r in caplog.records if r.levelno == logging.DEBUG and r.exc_info]) == 1
    assert set(asked) == {"/bucket/run/STOP"} and len(asked) == 31


def test_a_file_system_that_raises_anything_ends_no_run_and_shows_its_trace(
    bucket: Storage, exists: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def broken(path: str) -> bool:
        asked.append(path)
        assert len(asked) > 5
        return True

    exists(broken)
    with StopPoll(bucket, every_s=0.001) as poll:
        wait_for(poll.is_requested, seconds=30)
    assert "in broken" in caplog.text and "AssertionError" in caplog.text


def test_the_thread_ends_with_the_poll(tmp_path: Path) -> None:
    before = threading.active_count()
    with StopPoll(Storage.of(tmp_path)):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
