"""Notices a step that hangs instead of failing, such as a program that is too large for XLA.

Only a step's own work counts: waiting for data is bounded elsewhere (pathray.data), and validation, saves and
evaluations are not steps. What is done about a hang is for whoever watches (pathray.run.hangs).
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST_STEPS, FIRST_FACTOR = 3, 4.0  # the first steps with the same phases compile and warm up
LOOK_EVERY_S = 5.0
GRACE_S = 60.0  # for a thread of Python to run, before the process ends without it


@dataclass(frozen=True)
class Hang:
    """A step (from 1) that was busy for `seconds`, more than `limit_s`; `stacks`: where its process's threads were."""

    step: int
    seconds: float
    limit_s: float
    stacks: str


class StepWatch:
    """Calls `on_hang` once, from a thread of its own, when a step was busy for more than `limit_s` seconds.

    limit_s: 0 watches nothing. The first FIRST_STEPS steps with the same phases get FIRST_FACTOR times as long, because
    XLA compiles in them. When a library holds the interpreter lock, no thread can look: a timer in C then writes the
    stacks to standard error and ends the process with exit code 1, GRACE_S later. `clock` gives seconds.
    """

    def __init__(
        self, limit_s: float, on_hang: Callable[[Hang], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s, self._on_hang, self._clock = limit_s, on_hang, clock
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._step, self._bound_s, self._spent_s = 0, limit_s, 0.0
        self._since: float | None = None  # None while nothing counts
        self._taken: Counter[tuple[str, ...]] = Counter()
        self._thread: threading.Thread | None = None

    def start(self) -> StepWatch:
        """Begin to look. `close` ends it."""
        if self._limit_s > 0:
            self._thread = threading.Thread(target=self._watch, name="pathray-step-watch", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def step(self, number: int, phases: tuple[str, ...]) -> Iterator[None]:
        """The block is step `number` (from 1), which does these phases."""
        with self._lock:
            first = self._taken[phases] < FIRST_STEPS
            self._taken[phases] += 1
            self._step, self._bound_s = number, self._limit_s * (FIRST_FACTOR if first else 1.0)
            self._spent_s, self._since = 0.0, self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._since = None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The block, inside a step, does not count: it waits for data or for storage."""
        with self._lock:
            self._spent_s, self._since = self._busy_s(), None
        try:
            yield
        finally:
            with self._lock:
                self._since = self._clock()

    def look(self) -> Hang | None:
        """The step that has been busy for too long, if it has."""
        with self._lock:
            step, seconds, bound = self._step, self._busy_s(), self._bound_s
            if self._since is None or not self._limit_s or seconds <= bound:
                return None
        return Hang(step, seconds, bound, _stacks())

    def _busy_s(self) -> float:
        return self._spent_s + (0.0 if self._since is None else self._clock() - self._since)

    def _watch(self) -> None:
        every = min(LOOK_EVERY_S, self._limit_s / 4)
        while not self._ending.is_set():
            # a longer silence than the longest step's means that nothing in this process can run
            silent_s = self._limit_s * FIRST_FACTOR + every + GRACE_S
            faulthandler.dump_traceback_later(silent_s, exit=True, file=sys.__stderr__ or sys.stderr)
            if (hang := self.look()) is not None:
                self._on_hang(hang)
                return
            self._ending.wait(every)


def _stacks() -> str:
    """The Python stacks of all threads of this process."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
