"""One writer per run folder: a second start is refused, and an attempt that was replaced writes no more.

    with Fence(run_dir) as fence:              # in the driver; UserError when somebody else is training here
        …                                      # workers get fence.token
    Fence.of(run_dir, token).check()           # in rank 0, before each write; Superseded when another start took over

The folder holds ``owner.json``: a token, who owns the folder, and a beat that the owner renews. An owner of this
machine whose process has ended is replaced at once. Of an owner elsewhere only the beat is known: its place is free
when the beat has stood still for long enough. A folder without the file, as older versions left it, is free.
Not here: how a file is written by one process at a time (pathray.store.exclusive).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Any, TypeVar

from pathray.errors import UserError
from pathray.run.layout import OWNER
from pathray.store.exclusive import SETTLE_S, content, create, discard, swap
from pathray.store.liveness import is_gone, this_process
from pathray.store.outages import through_outages
from pathray.store.records import text
from pathray.store.storage import Storage, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")

EVERY_S, STALE_BEATS = 10.0, 6
LOOKS = 20  # at a silent owner, while its place is waited for


class Superseded(UserError):
    """Another start owns the run folder: this attempt must not write there any more."""


def write_guarded(guard: Callable[[], None], action: Callable[[], T], what: str) -> T:
    """`action()`, right after `guard()`, which raises when another start owns the run; both are tried again while
    storage is away."""

    def write() -> T:
        guard()
        return action()

    return through_outages(write, what)


@dataclass(frozen=True)
class Owner:
    """What ``owner.json`` says; `record` is empty where it is damaged."""

    data: bytes
    record: Mapping[str, Any]

    @property
    def token(self) -> str:
        return str(self.record.get("token", ""))

    @property
    def who(self) -> str:
        who = self.record
        if not who:
            return f"owner unknown: {OWNER} is damaged"
        return f"{who.get('user')}@{who.get('host')}, process {who.get('pid')}, since {_clock(who.get('began'))}"


class Fence:
    """Ownership of the run folder `run_dir`, a path or a URL. The owner's beat is renewed every `every_s` seconds; an
    owner on another machine is given up after STALE_BEATS times that. `trains`: what owns the folder is a training,
    which ray_jobs.stop can stop; otherwise it is a job that writes data there."""

    def __init__(
        self, run_dir: str, *, every_s: float = EVERY_S, settle_s: float = SETTLE_S, trains: bool = True
    ) -> None:
        self.store, self.every_s, self.settle_s = Storage.of(run_dir), every_s, settle_s
        self.trains, self.token = trains, ""
        self._began = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, run_dir: str, token: str) -> Fence:
        """The fence as a worker sees it: the driver owns the folder by `token`."""
        fence = cls(run_dir)
        fence.token = token
        return fence

    def take(self) -> str:
        """Own the folder from now on; the token. Waits for a silent owner on another machine.

        UserError when the folder's owner is alive, StorageError when storage is away to begin with.
        """
        assert not self.token, "the folder is taken already"
        self._began, token = time.time(), uuid.uuid4().hex
        while True:
            found = self._wait_for_place()
            record = self._record(token)
            if found is None:
                taken = create(self.store, OWNER, record, self.settle_s)
            else:
                log.warning("taking over %s: its owner has ended (%s)", self.store.url, found.who)
                taken = swap(self.store, OWNER, partial(eq, found.data), record, self.settle_s)
            if taken:
                break
        self.token = token
        self._thread = threading.Thread(target=self._beat, name="pathray-fence", daemon=True)
        self._thread.start()
        return token

    def check(self) -> None:
        """Superseded when the folder is not owned by this token any more; StorageError when that cannot be read."""
        if not self._is_ours(content(self.store, OWNER)):
            raise self._superseded_error()

    def is_held(self) -> bool:
        """Whether the folder is known to be owned by this token."""
        try:
            self.check()
        except (Superseded, StorageError):
            return False
        return True

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The items, for as long as the folder is ours: it is looked at after an item, at most once a beat. Superseded;
        storage that is away is waited for."""
        looked = time.monotonic()
        for item in items:
            if time.monotonic() - looked >= self.every_s:
                through_outages(self.check, OWNER)
                looked = time.monotonic()
            yield item

    def release(self) -> None:
        """Give the folder back, if it is still ours. What prevents it is a warning: the beat then runs out."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        if not self.token:
            return
        try:
            discard(self.store, OWNER, self._is_ours)
        except Exception as e:
            log.warning("%s could not be removed: %s", OWNER, e, exc_info=not isinstance(e, StorageError))
        self.token = ""

    def __enter__(self) -> Fence:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _wait_for_place(self) -> Owner | None:
        """The owner whose place is free, None when there is none. UserError as soon as the owner is known to live."""
        first = found = self._read()
        until: float | None = None
        while found is not None:
            assert first is not None
            gone = is_gone(found.record)
            if gone is False or (found.record and found.data != first.data):
                raise self._in_use_error(found)
            if until is None and not gone:
                until = time.monotonic() + self._silence(first)
                message = "%s may be in use (%s): waiting for a sign of life, up to %.0f s"
                log.warning(message, self.store.url, first.who, until - time.monotonic())
            left = 0.0 if until is None else until - time.monotonic()
            if gone or left <= 0:
                return found
            time.sleep(min(left, self.every_s * STALE_BEATS / LOOKS))
            looked = time.monotonic()
            found = through_outages(self._read, "the place in the run's folder")
            if until is not None and time.monotonic() - looked > self.every_s:  # storage was away, for the owner, too
                until = time.monotonic() + self.every_s * STALE_BEATS
        return None

    def _silence(self, owner: Owner) -> float:
        """Seconds without a beat after which the owner is given up. Clocks of two machines differ, so even an old beat
        is watched for longer than the time between two."""
        beat = owner.record.get("beat") if owner.record else self.store.modified_at(OWNER)
        stale = self.every_s * STALE_BEATS
        if not isinstance(beat, int | float):
            return stale
        watched = self.every_s * 1.5 if owner.record else 0.0
        return max(watched, min(stale, stale - (time.time() - beat)))

    def _read(self) -> Owner | None:
        data = content(self.store, OWNER)
        if data is None:
            return None
        try:
            record = json.loads(data)
        except ValueError:  # also bytes that are no text
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("token"), str):
            record = {}
        return Owner(data, record)

    def _record(self, token: str) -> bytes:
        return text({"token": token, **this_process(), "began": self._began, "beat": time.time()})

    def _is_ours(self, data: bytes | None) -> bool:
        return bool(self.token) and data is not None and self.token.encode() in data

    def _beat(self) -> None:
        """Renew the beat until the end. Trouble is logged once, and tried again at the next beat: without
        one, another machine would take over a run that lives."""
        store, troubled = self.store.without_retries(), False
        while not self._ending.wait(self.every_s):
            try:
                if not swap(store, OWNER, self._is_ours, self._record(self.token), 0.0):
                    log.warning("%s", self._superseded_error())
                    return
                troubled = False
            except Exception as e:
                if not troubled:
                    unexpected = not isinstance(e, StorageError)
                    log.warning("%s could not be renewed; retrying: %s", OWNER, e, exc_info=unexpected)
                    log.debug("", exc_info=True)
                troubled = True

    def _superseded_error(self) -> Superseded:
        try:
            now = self._read()
        except StorageError:
            now = None
        what = "run" if self.trains else "folder"
        message = f"another start has taken over this {what}: this attempt writes no more"
        found = "nobody owns the folder any more" if now is None else now.who
        return Superseded(
            message, file=self.store.join(OWNER), found=found, expected=f"one start of a {what} at a time"
        )

    def _in_use_error(self, owner: Owner) -> UserError:
        stop = f"python -m ray_jobs.stop {self.store.url}"
        expected = f"wait until it has ended, stop it ({stop}), or choose another output"
        message = "the run is being trained by another process"
        if not self.trains:
            message, expected = "another process writes there", "wait until it has ended, or choose another output"
        return UserError(message, file=self.store.url, found=owner.who, expected=expected)


_HELD: dict[str, Fence] = {}  # by this process


@contextlib.contextmanager
def hold(run_dir: str, *, trains: bool = True) -> Iterator[Fence]:
    """Own a run folder while the block runs, `trains` as of `Fence`. Blocks of one process may be nested: the outermost
    takes and releases."""
    url = Storage.of(run_dir).url
    if url in _HELD:
        yield _HELD[url]
        return
    with Fence(url, trains=trains) as fence:
        _HELD[url] = fence
        try:
            yield fence
        finally:
            del _HELD[url]


@contextlib.contextmanager
def fence_for_rank(run_dir: str, rank: int, token: str = "") -> Iterator[Fence | None]:
    """The fence as a rank sees it: of the driver by its `token`, or held by rank 0 meanwhile; None on other ranks."""
    if rank != 0:
        yield None
    elif token:
        yield Fence.of(run_dir, token)
    else:
        with hold(run_dir) as fence:
            yield fence


def _clock(began: Any) -> str:
    """Local date and time of epoch seconds."""
    if not isinstance(began, int | float) or not math.isfinite(began):
        return "an unknown time"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
