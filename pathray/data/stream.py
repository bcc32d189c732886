"""From plan rows to decoded micro-batches, in order, with bounded memory. No Ray: the notebook's loader too.

`stream_batches` turns row batches into pixel batches through a bounded pool of threads.

Not here: which rows a rank reads (pathray.data.share), how rows travel through a cluster (ray_jobs.train.rank_stream),
and what a unit looks like (the sciences' readers).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pathray.data.faults import StreamError
from pathray.data.share import Lookup
from pathray.data.stalls import WINDOW, Stalls
from pathray.data.units import Batch, Unit, UnitReader, assemble, count_bytes, reporting_faults, units_of


def decode(reader: UnitReader, rows: Mapping[str, npt.NDArray[Any]], lookup: Lookup) -> Batch:
    """One row batch decoded in the calling thread (no timeout): what a decoding task on a cluster runs."""
    units = units_of(rows)
    with reporting_faults(units):
        for unit in units:
            unit.run(reader, lookup, 0, threading.Lock())
    return assemble(reader, units)


@dataclass
class DecodeSettings:
    """`threads` decode at once; at most `ahead` batches and about `ahead_bytes` wait decoded; a read that takes longer
    than `timeout_s` is abandoned and its unit replaced (reason ``timeout``).

    More than `max_stalled` such reads end the stream: the storage hangs. Each is forgotten when `WINDOW` units
    (pathray.data.stalls) have been read since.
    """

    threads: int = 2
    ahead: int = 4
    ahead_bytes: int = 1 << 30
    timeout_s: float = 120.0
    max_stalled: int = 16


def stream_batches(
    rows: Iterable[Mapping[str, npt.NDArray[Any]]],
    reader: UnitReader,
    lookup: Lookup,
    settings: DecodeSettings | None = None,
) -> Iterator[Batch]:
    """Decode row batches in order with a bounded pool of threads.

    Yields what `pathray.data.units.assemble` makes of the units: what the reader collates, ``position`` [B] int64,
    ``corrupt`` and ``faults``; of groups, lists. Each row of a group is a unit of its own to the pool. Backpressure is
    by batches and by the bytes that they hold; a stalled read holds up neither memory nor the stream for longer than
    its timeout. Raises what a reader raised when it is not an UnreadableUnit, and UserError when a unit has no readable
    replacement or too many reads hang.
    """
    pool = _Pool(reader, lookup, settings or DecodeSettings())
    try:
        source, waiting, exhausted = iter(rows), deque[_Micro](), False
        while True:
            while not exhausted and pool.has_room(waiting):
                batch = next(source, None)
                if batch is None:
                    exhausted = True
                else:
                    waiting.append(pool.submit(batch))
            if not waiting:
                return
            micro = waiting.popleft()
            yield pool.wait(micro)
    finally:
        pool.close()


@dataclass
class _Micro:
    units: list[Unit]
    left: int
    batch: Batch | None = None
    held: int = 0  # bytes of `batch`
    error: BaseException | None = None


class _Pool:
    """Threads that read units; the thread that finishes a micro-batch collates it, so the consumer only takes it."""

    def __init__(self, reader: UnitReader, lookup: Lookup, settings: DecodeSettings) -> None:
        self.reader, self.lookup, self.settings = reader, lookup, settings
        self.lock = threading.Lock()
        self.ready = threading.Condition(self.lock)
        self.tasks: deque[tuple[_Micro, Unit, int]] = deque()
        self.work = threading.Condition(self.lock)
        self.closed, self.stalls, self.largest = False, Stalls(), 0
        for _ in range(max(1, settings.threads)):
            self._spawn()

    def has_room(self, waiting: deque[_Micro]) -> bool:
        """Whether another batch may be read: one that is not read yet counts as the largest so far."""
        if not waiting:
            return True
        held = sum(micro.held or self.largest for micro in waiting) + self.largest
        return len(waiting) <= self.settings.ahead and held <= self.settings.ahead_bytes

    def submit(self, rows: Mapping[str, npt.NDArray[Any]]) -> _Micro:
        units = units_of(rows)
        micro = _Micro(units, len(units))
        with self.lock:
            self.tasks.extend((micro, unit, 0) for unit in units)
            self.work.notify_all()
        return micro

    def wait(self, micro: _Micro) -> Batch:
        with reporting_faults(micro.units):
            with self.lock:
                while micro.batch is None and micro.error is None:
                    self.ready.wait(self._abandon_overdue(micro))
            if micro.error is not None:
                raise micro.error
        assert micro.batch is not None
        return micro.batch

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.tasks.clear()
            self.work.notify_all()

    def _spawn(self) -> None:
        threading.Thread(target=self._run, name="pathray-decode", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self.lock:
                while not self.tasks and not self.closed:
                    self.work.wait()
                if self.closed:
                    return
                micro, unit, generation = self.tasks.popleft()
            try:
                if not unit.run(self.reader, self.lookup, generation, self.lock):
                    return  # abandoned: another thread has taken this one's place
                self._finish(micro)
            except BaseException as e:  # handed to the consumer, which raises it
                with self.lock:
                    if unit.generation != generation:
                        return
                    micro.error = micro.error or e
                    self.ready.notify_all()

    def _finish(self, micro: _Micro) -> None:
        with self.lock:
            micro.left -= 1
            last = micro.left == 0
        if last:
            batch = assemble(self.reader, micro.units)
            held = count_bytes(batch)
            with self.lock:
                self.stalls.succeed(len(micro.units))
                micro.batch, micro.held, self.largest = batch, held, max(self.largest, held)
                for unit in micro.units:
                    unit.value = None  # the batch has it
                self.ready.notify_all()

    def _abandon_overdue(self, micro: _Micro) -> float:
        """Replace reads of `micro` past their time (lock held); returns the seconds until the next could be."""
        now, soonest = time.monotonic(), self.settings.timeout_s
        for unit in micro.units:
            if unit.value is not None or unit.started is None:
                continue
            left = unit.started + self.settings.timeout_s - now
            if left > 0:
                soonest = min(soonest, left)
                continue
            stalled = self.stalls.add()
            if stalled > self.settings.max_stalled:
                raise StreamError(
                    "too many reads hang: is the storage reachable?",
                    row=int(unit.row["row"]),
                    key="data.read_timeout_s",
                    found=f"{stalled} reads longer than {self.settings.timeout_s} s",
                    expected=f"at most {self.settings.max_stalled} of {WINDOW} (data.max_stalled_reads)",
                )
            self._replace_stalled(micro, unit)
        return soonest

    def _replace_stalled(self, micro: _Micro, unit: Unit) -> None:
        unit.abandon(self.reader, self.lookup, self.settings.timeout_s)
        self.tasks.appendleft((micro, unit, unit.generation))
        self._spawn()
        self.work.notify_all()
