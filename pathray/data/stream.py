"""From positions to decoded micro-batches, in order, with bounded memory. No Ray: the notebook's loader too.

`rank_positions` says which positions a rank owns, `Lookup` turns positions into plan rows, `decoded` turns row batches
into pixel batches through a bounded pool of threads. A unit that cannot be read is replaced by another row of its
stratum, counted by reason, and reported with the batch; the plan itself never changes.

Not here: how rows travel through a cluster (ray_jobs.train.rank_stream) and what a unit looks like (the sciences'
readers).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pathray.data.order import Ints, Order
from pathray.data.plan import Plan
from pathray.errors import UnreadableUnit, UserError

Batch = dict[str, Any]
MAX_ATTEMPTS = 16  # reads of one position that may fail because the data are damaged
MAX_REPLACEMENTS = 256  # and all in all: a plan where most units are refused for a benign reason still trains


class UnitReader(Protocol):
    """Decodes one unit; picklable; safe in several threads at once.

    `read` raises UnreadableUnit when the data will not do. Reasons in `benign_reasons` (too little tissue, say) lead to
    a replacement too, but do not count as corruption.
    """

    benign_reasons: frozenset[str]

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]: ...

    def collate(self, units: Sequence[dict[str, Any]]) -> Batch: ...


@dataclass(frozen=True)
class Fault:
    """One unreadable unit, as it goes into the quarantine report."""

    position: int
    attempt: int
    row: int
    source: int
    reason: str
    path: str
    detail: str
    benign: bool


class StreamError(UserError):
    """The stream cannot go on; `faults` are those of the batch at which it ended, for the report."""

    faults: tuple[Fault, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.message, self.where, self.faults)


def _rebuilt(message: str, where: dict[str, object], faults: tuple[Fault, ...]) -> StreamError:
    error = StreamError(message, **where)
    error.faults = faults
    return error


@dataclass(frozen=True)
class Lookup:
    """Position → the plan's columns, plus ``position`` and ``row``. What a rank's stream carries to wherever it is
    read."""

    plan: Plan
    order: Order

    def __call__(self, positions: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        index = np.asarray(positions, np.int64)
        rows = self.order.rows(index)
        return {"position": index, "row": rows, **self.plan.take(rows)}

    def replacement(self, position: int, attempt: int) -> dict[str, Any]:
        """The unit that stands in at `position` for the given attempt (≥ 1)."""
        row = self.order.replacement(position, attempt)
        return {"position": position, "row": row, **{k: v[0] for k, v in self.plan.take([row]).items()}}


@dataclass(frozen=True)
class Share:
    """What part of the sequence a rank reads: positions `start` … `stop` of global batches of `global_batch` units."""

    start: int
    stop: int
    global_batch: int
    micro: int
    rank: int
    world: int


def check_geometry(global_batch: int, world: int, micro: int) -> None:
    """UserError unless W·micro divides G."""
    if min(global_batch, world, micro) < 1 or global_batch % (world * micro):
        raise UserError(
            "workers x micro_batch must divide the global batch",
            key="micro_batch",
            found=f"global_batch {global_batch}, workers {world}, micro_batch {micro}",
            expected=f"workers x micro_batch one of {_divisors(global_batch)}",
        )


def rank_positions(start: int, stop: int, global_batch: int, rank: int, world: int, steps: int = 256) -> Iterator[Ints]:
    """The positions of one rank between two step boundaries, in order, in arrays of up to `steps` steps.

    Step s holds positions sG … sG+G−1 and rank r owns the r-th G/W of them.
    """
    assert start % global_batch == 0 and stop % global_batch == 0 and global_batch % world == 0
    share = global_batch // world
    for first in range(start // global_batch, stop // global_batch, steps):
        step = np.arange(first, min(first + steps, stop // global_batch), dtype=np.int64)[:, None]
        yield (step * global_batch + rank * share + np.arange(share)).ravel()


def share_rows(lookup: Lookup, share: Share, chunk: int = 2048) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The plan rows of a rank's share, looked up about `chunk` at a time."""
    steps = max(1, chunk * share.world // share.global_batch)
    for positions in rank_positions(share.start, share.stop, share.global_batch, share.rank, share.world, steps):
        yield lookup(positions)


def rank_rows(
    lookup: Lookup, start: int, stop: int, global_batch: int, rank: int, world: int, micro: int, chunk: int = 2048
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """One rank's rows in micro-batches, looked up `chunk` rows at a time: the stream without Ray."""
    check_geometry(global_batch, world, micro)
    for rows in share_rows(lookup, Share(start, stop, global_batch, micro, rank, world), chunk):
        for i in range(0, len(rows["position"]), micro):
            yield {name: values[i : i + micro] for name, values in rows.items()}


def asserted(
    batches: Iterable[dict[str, Any]], start: int, global_batch: int, rank: int, world: int, micro: int
) -> Iterator[dict[str, Any]]:
    """Pass batches through, asserting that each holds exactly the positions that this rank owns next."""
    share = global_batch // world
    for i, batch in enumerate(batches):
        step, part = divmod(i, share // micro)
        first = start + step * global_batch + rank * share + part * micro
        expected = np.arange(first, first + micro)
        assert np.array_equal(batch["position"], expected), (rank, i, batch["position"], expected)
        yield batch


def decode(reader: UnitReader, rows: Mapping[str, npt.NDArray[Any]], lookup: Lookup) -> Batch:
    """One row batch decoded in the calling thread (no timeout): what a decoding task on a cluster runs."""
    jobs = [_Unit(unit) for unit in _units(rows)]
    with _telling_faults(jobs):
        for job in jobs:
            job.run(reader, lookup, 0, threading.Lock())
    return _assemble(reader, jobs)


@dataclass
class DecodeSettings:
    """`threads` decode at once; at most `ahead` batches and about `ahead_bytes` wait decoded; a read that takes longer
    than `timeout_s` is abandoned and its unit replaced (reason ``timeout``)."""

    threads: int = 2
    ahead: int = 4
    ahead_bytes: int = 1 << 30
    timeout_s: float = 120.0
    max_stalled: int = 16


def decoded(
    rows: Iterable[Mapping[str, npt.NDArray[Any]]],
    reader: UnitReader,
    lookup: Lookup,
    settings: DecodeSettings | None = None,
) -> Iterator[Batch]:
    """Decode row batches in order with a bounded pool of threads.

    Yields `reader.collate` of the units, plus ``position`` [B] int64, ``corrupt`` (units replaced for a reason that is
    not benign) and ``faults`` (list of Fault). Backpressure is by batches and by bytes; a stalled read holds up neither
    memory nor the stream for longer than its timeout. Raises what a reader raised when it is not an UnreadableUnit, and
    UserError when a unit has no readable replacement or too many reads hang.
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
class _Unit:
    row: dict[str, Any]
    generation: int = 0
    attempt: int = 0
    tried: dict[str, Any] | None = None
    started: float | None = None
    value: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)

    def run(self, reader: UnitReader, lookup: Lookup, generation: int, lock: threading.Lock) -> bool:
        """Read the unit or a replacement. False when a timeout took the unit away meanwhile: the result is dropped."""
        position = int(self.row["position"])
        for attempt in range(self.attempt, MAX_REPLACEMENTS):
            if sum(not fault.benign for fault in self.faults) >= MAX_ATTEMPTS:
                break
            row = lookup.replacement(position, attempt) if attempt else self.row
            with lock:
                if self.generation != generation:
                    return False
                self.attempt, self.tried, self.started = attempt, row, time.monotonic()
            value, fault = _attempt(reader, row, position, attempt)
            with lock:
                if self.generation != generation:
                    return False
                if fault is None:
                    self.value = value
                    return True
                self.faults.append(fault)
        raise _no_replacement(position, self.faults)


@dataclass
class _Micro:
    units: list[_Unit]
    left: int
    batch: Batch | None = None
    error: BaseException | None = None


class _Pool:
    """Threads that read units; the thread that finishes a micro-batch collates it, so the consumer only takes it."""

    def __init__(self, reader: UnitReader, lookup: Lookup, settings: DecodeSettings) -> None:
        self.reader, self.lookup, self.settings = reader, lookup, settings
        self.lock = threading.Lock()
        self.ready = threading.Condition(self.lock)
        self.tasks: deque[tuple[_Micro, _Unit, int]] = deque()
        self.work = threading.Condition(self.lock)
        self.closed, self.stalled, self.batch_bytes = False, 0, 0
        for _ in range(max(1, settings.threads)):
            self._spawn()

    def has_room(self, waiting: deque[_Micro]) -> bool:
        count = len(waiting)
        return count == 0 or (
            count <= self.settings.ahead and (count + 1) * self.batch_bytes <= self.settings.ahead_bytes
        )

    def submit(self, rows: Mapping[str, npt.NDArray[Any]]) -> _Micro:
        units = [_Unit(unit) for unit in _units(rows)]
        micro = _Micro(units, len(units))
        with self.lock:
            self.tasks.extend((micro, unit, 0) for unit in units)
            self.work.notify_all()
        return micro

    def wait(self, micro: _Micro) -> Batch:
        with _telling_faults(micro.units):
            with self.lock:
                while micro.batch is None and micro.error is None:
                    self.ready.wait(self._abandon_overdue(micro))
            if micro.error is not None:
                raise micro.error
        assert micro.batch is not None
        self.batch_bytes = max(self.batch_bytes, _nbytes(micro.batch))
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
            batch = _assemble(self.reader, micro.units)
            with self.lock:
                micro.batch = batch
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
            self.stalled += 1
            if self.stalled > self.settings.max_stalled:
                raise StreamError(
                    "too many reads hang: is the storage reachable?",
                    row=int(unit.row["row"]),
                    key="data.read_timeout_s",
                    found=f"{self.stalled} reads longer than {self.settings.timeout_s} s",
                )
            self._replace_stalled(micro, unit)
        return soonest

    def _replace_stalled(self, micro: _Micro, unit: _Unit) -> None:
        row, position = unit.tried or unit.row, int(unit.row["position"])
        slow = UnreadableUnit("timeout", _source_name(self.lookup, row), f"no data in {self.settings.timeout_s} s")
        unit.faults.append(_fault(self.reader, row, position, unit.attempt, slow))
        unit.generation, unit.attempt, unit.started = unit.generation + 1, unit.attempt + 1, None
        self.tasks.appendleft((micro, unit, unit.generation))
        self._spawn()
        self.work.notify_all()


def _attempt(
    reader: UnitReader, row: Mapping[str, Any], position: int, attempt: int
) -> tuple[dict[str, Any] | None, Fault | None]:
    try:
        return reader.read(row, position, attempt), None
    except UnreadableUnit as e:
        return None, _fault(reader, row, position, attempt, e)


def _source_name(lookup: Lookup, row: Mapping[str, Any]) -> str:
    """What the plan's table of slides or archives calls the unit's source: its first column."""
    return str(lookup.plan.sources.column(0)[int(row["source"])]) if "source" in row else f"row {row['row']}"


def _units(rows: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    count = len(rows["position"])
    return [{name: values[i] for name, values in rows.items()} for i in range(count)]


def _assemble(reader: UnitReader, units: Sequence[_Unit]) -> Batch:
    faults = [f for unit in units for f in unit.faults]
    values = [unit.value for unit in units]
    assert all(v is not None for v in values)
    batch = reader.collate([v for v in values if v is not None])
    batch["position"] = np.array([int(unit.row["position"]) for unit in units], np.int64)
    batch["corrupt"] = sum(1 for unit in units if any(not f.benign for f in unit.faults))
    batch["faults"] = faults
    return batch


def _fault(reader: UnitReader, row: Mapping[str, Any], position: int, attempt: int, e: UnreadableUnit) -> Fault:
    source, benign = int(row.get("source", -1)), e.reason in reader.benign_reasons
    return Fault(position, attempt, int(row["row"]), source, e.reason, e.path, e.detail, benign)


@contextmanager
def _telling_faults(units: Sequence[_Unit]) -> Iterator[None]:
    try:
        yield
    except StreamError as e:
        e.faults = tuple(fault for unit in units for fault in unit.faults)
        raise


def _no_replacement(position: int, faults: Sequence[Fault]) -> StreamError:
    last = faults[-1]
    return StreamError(
        f"no readable unit found for position {position} in {len(faults)} attempts",
        file=last.path,
        row=last.row,
        found=f"{last.reason}: {last.detail}",
        expected="a plan whose units can mostly be read",
    )


def _nbytes(batch: Batch) -> int:
    return sum(v.nbytes for v in batch.values() if isinstance(v, np.ndarray))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, max(n, 1) + 1) if n % d == 0]
