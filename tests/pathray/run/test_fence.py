"""One writer per run folder: who is refused, whose place is taken, and who may write no more."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest

from pathray.errors import UserError
from pathray.run.fence import Fence, Superseded
from pathray.run.layout import OWNER
from pathray.store.exclusive import swap
from pathray.store.liveness import start_ticks, this_process
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError
from tests.builders.bucket import BucketFileSystem, away
from tests.builders.jobs import ROOT, wait_for

EVERY_S = 0.05
PLACES = ["local", "bucket", "bucket without conditions"]
FENCES: list[Fence] = []


@pytest.fixture(params=PLACES)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run folder that does not exist yet."""
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    if request.param == "bucket without conditions":
        monkeypatch.setenv("BUCKET_WITHOUT_CONDITIONS", "1")
    yield str(tmp_path / "run") if request.param == "local" else "bucket://store/run"
    while FENCES:
        FENCES.pop().release()


def fence(run: str, **more: Any) -> Fence:
    FENCES.append(Fence(run, **{"every_s": EVERY_S, "settle_s": 0.2, **more}))
    return FENCES[-1]


def owner(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Storage.of(run).read_bytes(OWNER))
    return found


def write_owner(run: str, **changes: Any) -> None:
    record = {"token": "theirs", **this_process(), "began": 1.0, "beat": time.time(), **changes}
    Storage.of(run).write_bytes(OWNER, json.dumps(record).encode())


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_folder_has_one_owner_until_it_is_released(run: str) -> None:
    first = fence(run)
    token = first.take()
    assert owner(run)["token"] == token and owner(run)["pid"] == os.getpid()
    first.check()
    with pytest.raises(UserError) as e:
        fence(run).take()
    text = str(e.value)
    me = this_process()
    assert f"{me['user']}@{me['host']}, process {os.getpid()}, since {time.strftime('%Y-')}" in text
    assert f"python -m ray_jobs.stop {Storage.of(run).url}" in text and "another output" in text
    first.check()
    first.release()
    assert not Storage.of(run).exists(OWNER)
    with fence(run) as second:
        assert second.token != token


def test_a_worker_with_the_drivers_token_may_write_until_another_start_owns_the_folder(run: str) -> None:
    first = fence(run, every_s=3600.0)  # no beat that was about to be written when the other began
    worker = Fence.of(run, first.take())
    worker.check()
    write_owner(run)
    for attempt in (worker, first):
        with pytest.raises(Superseded, match="another start has taken over this run.*process"):
            attempt.check()
    first.release()
    assert owner(run)["token"] == "theirs", "the folder of another is not released"
    Storage.of(run).remove(OWNER)
    with pytest.raises(Superseded, match="nobody owns"):
        worker.check()


def test_the_beat_is_renewed_and_stops_with_the_release(run: str) -> None:
    with fence(run) as own:
        first = owner(run)["beat"]
        wait_for(lambda: owner(run)["beat"] > first, seconds=30)
        own.check()
    assert "pathray-fence" not in [t.name for t in threading.enumerate()]


def test_the_beat_of_a_superseded_owner_does_not_bring_its_token_back(run: str) -> None:
    own = fence(run)
    own.take()
    write_owner(run, beat=1.0)
    assert own._thread is not None
    own._thread.join(30)
    assert not own._thread.is_alive() and owner(run)["beat"] == 1.0


@pytest.mark.parametrize("gone", ["ended", "its number is another process's"])
def test_the_place_of_a_process_of_this_machine_that_has_ended_is_taken_at_once(run: str, gone: str) -> None:
    ended, now = ended_process(), start_ticks(os.getpid())
    assert now is not None
    process = {"pid": ended} if gone == "ended" else {"started": now - 1}
    write_owner(run, **process)
    own = fence(run, every_s=3600.0)  # nothing that is waited for
    own.take()
    own.check()
    own.release()


def test_a_zombie_is_a_process_that_has_ended() -> None:
    process = subprocess.Popen(["true"])
    wait_for(lambda: start_ticks(process.pid) is None, seconds=30)
    process.wait()


def test_a_silent_owner_elsewhere_is_waited_for_and_then_replaced(run: str, caplog: pytest.LogCaptureFixture) -> None:
    write_owner(run, host="elsewhere", beat=time.time())
    began = time.monotonic()
    own = fence(run)
    own.take()
    assert time.monotonic() - began >= 5 * EVERY_S
    assert "waiting for a sign of life, up to 0 s" in caplog.text and "@elsewhere, process" in caplog.text


def test_an_owner_elsewhere_that_gives_a_sign_of_life_is_refused_however_its_clock_is_set(run: str) -> None:
    for clock in (-1000.0, 1000.0):
        write_owner(run, host="elsewhere", beat=time.time() + clock)
        beating = threading.Timer(0.3, write_owner, (run,), {"host": "elsewhere", "beat": time.time() + clock + 10})
        beating.start()
        with pytest.raises(UserError, match="@elsewhere"):
            fence(run, every_s=1.0).take()
        beating.join()


def test_an_old_beat_elsewhere_is_watched_for_a_moment_only(run: str) -> None:
    write_owner(run, host="elsewhere", beat=time.time() - 3600)
    began = time.monotonic()
    fence(run, every_s=1.0).take()
    assert 1.5 <= time.monotonic() - began < 6.0


def test_a_damaged_record_is_named_and_counts_for_as_long_as_its_file_is_new(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    Storage.of(run).write_bytes(OWNER, b'{"token": ')
    own = fence(run, every_s=0.2)
    began = time.monotonic()
    own.take()
    assert time.monotonic() - began >= 5 * 0.2
    assert f"{Storage.of(run).url} may be in use (owner unknown: {OWNER} is damaged): waiting" in caplog.text


def test_of_many_threads_that_start_at_once_one_wins(run: str) -> None:
    together, won, refused = threading.Barrier(12), list[str](), list[UserError]()

    def start() -> None:
        together.wait()
        try:
            won.append(fence(run).take())
        except UserError as e:
            refused.append(e)

    threads = [threading.Thread(target=start) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [owner(run)["token"]] and len(refused) == 11


STARTS = """
import os, sys, time, fsspec
from tests.builders.bucket import BucketFileSystem
from pathray.errors import UserError
from pathray.run.fence import Fence
fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
print("ready", flush=True)
sys.stdin.readline()
try:
    print(Fence(sys.argv[1], every_s=0.2, settle_s=0.5).take(), flush=True)
    sys.stdin.readline()  # stays alive, without a release
except UserError as e:
    print("refused", flush=True)
"""


@pytest.mark.parametrize("before", ["free", "of a process that has ended"])
def test_of_processes_that_start_at_once_one_wins(run: str, before: str) -> None:
    if before != "free":
        write_owner(run, pid=ended_process())
    line, environment = [sys.executable, "-c", STARTS, run], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    starts = [subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(4)]
    for start in starts:
        assert start.stdout is not None and start.stdout.readline() == "ready\n"
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    said = [start.stdout.readline().strip() for start in starts if start.stdout is not None]
    for start in starts:
        start.communicate("\n")
    assert sorted(word for word in said if word == "refused") == ["refused"] * 3, said
    assert owner(run)["token"] in said


def test_storage_that_is_away_costs_the_owner_nothing_but_is_told_to_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path))
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.0)
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    with fence("bucket://store/run") as own:
        away().touch()
        wait_for(lambda: "owner.json could not be renewed; retrying" in caplog.text, seconds=30)
        with pytest.raises(StorageError) as e:
            own.check()
        assert e.value.passing
        away().unlink()
        before = owner("bucket://store/run")["beat"]
        wait_for(lambda: owner("bucket://store/run")["beat"] > before, seconds=30)
        own.check()
    assert caplog.text.count("could not be renewed") == 1


@pytest.mark.parametrize("trouble", ["hangs", "is away"])
def test_who_waits_for_a_place_does_not_take_an_outage_for_the_owners_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The owner elsewhere cannot renew its beat either, and does so a moment after the outage."""
    run, read, looks = str(tmp_path), Fence._read, [0]
    write_owner(run, host="elsewhere", beat=time.time() - 3600)

    def troubled(self: Fence) -> Any:
        looks[0] += 1
        if looks[0] == 2:
            before = read(self)
            time.sleep(1.0)  # longer than an old beat is watched
            threading.Timer(0.3, write_owner, (run,), {"host": "elsewhere"}).start()
            if trouble == "hangs":
                return before
            error = StorageError("503", file=run)
            error.passing = True
            raise error
        return read(self)

    monkeypatch.setattr(Fence, "_read", troubled)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.01)
    with pytest.raises(UserError, match="being trained by another process"):
        fence(run, every_s=0.4).take()


def test_a_file_system_without_hard_links_has_one_owner_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    own = fence(str(tmp_path / "run"))
    own.take()
    with pytest.raises(UserError, match="being trained by another process"):
        fence(str(tmp_path / "run")).take()
    own.release()
    assert os.listdir(tmp_path / "run") == []


def stale(*given: Any, **more: Any) -> NoReturn:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_folder_that_cannot_be_opened_for_its_lock_is_written_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: stale() if path == str(tmp_path) else real(path, *more))
    assert swap(Storage.of(str(tmp_path)), "name", lambda found: found is None, b"ours", 0.0)
    assert (tmp_path / "name").read_bytes() == b"ours"


def test_the_beat_outlives_errors_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fence(str(tmp_path)) as own:
        with monkeypatch.context() as patch:
            patch.setattr("pathray.run.fence.swap", stale)
            wait_for(lambda: "could not be renewed" in caplog.text, seconds=30)
        before = owner(str(tmp_path))["beat"]
        wait_for(lambda: owner(str(tmp_path))["beat"] > before, seconds=30)
        own.check()
    assert "Traceback" in caplog.text and "Stale file handle" in caplog.text


def test_errors_of_the_file_system_at_the_end_hide_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pathray.run.fence.discard", stale)
    with fence(str(tmp_path)):
        result = "trained"
    assert result == "trained" and "could not be removed" in caplog.text


def test_items_are_watched_until_the_place_is_lost(run: str):
    """At every beat the folder is looked at; what comes after another start took over is not given."""
    mine, seen = fence(run, trains=False), list[int]()
    mine.take()

    def items() -> Iterator[int]:
        yield 0
        write_owner(run)
        time.sleep(2 * EVERY_S)
        yield 1

    with pytest.raises(Superseded, match="taken over this folder"):
        for item in mine.watch(items()):
            seen.append(item)
    assert seen == [0]
