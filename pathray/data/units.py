"""One unit of training data: decoding it with a reader, replacing it if it cannot be read, and collating units.

A unit that cannot be read is replaced by another row of its stratum, counted by reason, and reported with the batch;
the plan itself never changes. A unit whose storage cannot be reached is no fault: it is read again. Not here: the
threads that read units (pathray.data.stream), the content of a unit (the sciences' readers).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pathray.data.faults import Fault, StreamError, no_replacement
from pathray.data.share import Lookup
from pathray.errors import UnreachableUnit, UnreadableUnit
from pathray.store.outages import through_outages
from pathray.store.storage import StorageError

Batch = dict[str, Any]
MAX_ATTEMPTS = 16  # reads of one position that may fail because the data are damaged
MAX_REPLACEMENTS = 256  # limit of all reads of a position: a plan with mostly benign rejections can still be trained on


class UnitReader(Protocol):
    """Decodes one unit. Must be picklable and thread-safe.

    `read` raises UnreadableUnit for unusable data, and UnreachableUnit, to be called again with the same arguments,
    while its storage cannot be reached. Units with a reason in `benign_reasons` (such as too little tissue)
    are also replaced, but do not count as corrupt. `collate` makes a batch from the units of a micro-batch or, if
    positions hold groups, of one group, which it may stack, pad, pack or leave as lists. Then `unit["slot"]` is the
    unit's place in its group, which `rng` takes in addition to position and attempt.
    """

    benign_reasons: frozenset[str]

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]: ...

    def collate(self, units: Sequence[dict[str, Any]]) -> Batch: ...


@dataclass
class Unit:
    """A plan row that is being read. `generation` counts reads that were abandoned as too slow; `started` is None while
    the unit waits for storage, which is not slow."""

    row: dict[str, Any]
    generation: int = 0
    attempt: int = 0
    tried: dict[str, Any] | None = None
    started: float | None = None
    value: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def position(self) -> int:
        return int(self.row["position"])

    @property
    def slot(self) -> int | None:
        """The unit's place in its group; None if its position has no group."""
        return int(self.row["slot"]) if "slot" in self.row else None

    def run(self, reader: UnitReader, lookup: Lookup, generation: int, lock: threading.Lock) -> bool:
        """Read the unit or a replacement. False if a timeout took over the unit, so that this result is dropped.

        Waits for storage that cannot be reached; StorageError, naming the file, if it stays away.
        """
        position = self.position
        for attempt in range(self.attempt, MAX_REPLACEMENTS):
            if sum(not fault.benign for fault in self.faults) >= MAX_ATTEMPTS:
                break
            row = lookup.replacement(position, attempt, self.slot) if attempt else self.row
            with lock:
                if self.generation != generation:
                    return False
                self.attempt, self.tried = attempt, row
            read = partial(self._read, reader, row, generation, lock)
            value, fault = through_outages(read, "the reading of training data")
            with lock:
                if self.generation != generation:
                    return False
                if fault is None:
                    self.value = value
                    return True
                self.faults.append(fault)
        raise no_replacement(position, self.faults)

    def _read(
        self, reader: UnitReader, row: Mapping[str, Any], generation: int, lock: threading.Lock
    ) -> tuple[dict[str, Any] | None, Fault | None]:
        """The unit or its fault, nothing for a read that was abandoned. A passing StorageError while the storage is
        away."""
        with lock:
            if self.generation != generation:
                return None, None
            attempt, self.started = self.attempt, time.monotonic()
        try:
            return _attempt(reader, row, self.position, attempt)
        except UnreachableUnit as e:
            with lock:
                if self.generation == generation:
                    self.started = None
            message = "the storage of the training data cannot be reached"
            raise StorageError.temporary(message, file=e.path, found=e.detail) from e

    def abandon(self, reader: UnitReader, lookup: Lookup, timeout_s: float) -> None:
        """Abandon the current read because it took too long; another thread makes the next attempt."""
        row = self.tried or self.row
        slow = UnreadableUnit("timeout", _source_name(lookup, row), f"no data in {timeout_s} s")
        self.faults.append(_fault(reader, row, self.position, self.attempt, slow))
        self.generation, self.attempt, self.started = self.generation + 1, self.attempt + 1, None


def _attempt(
    reader: UnitReader, row: Mapping[str, Any], position: int, attempt: int
) -> tuple[dict[str, Any] | None, Fault | None]:
    try:
        return reader.read(row, position, attempt), None
    except UnreachableUnit:
        raise
    except UnreadableUnit as e:
        return None, _fault(reader, row, position, attempt, e)


def _source_name(lookup: Lookup, row: Mapping[str, Any]) -> str:
    """The name of the unit's source: the first column of the plan's table of slides or archives."""
    return str(lookup.plan.sources.column(0)[int(row["source"])]) if "source" in row else f"row {row['row']}"


def units_of(rows: Mapping[str, npt.NDArray[Any]]) -> list[Unit]:
    """The rows of a batch as units that are not read yet."""
    count = len(rows["position"])
    return [Unit({name: values[i] for name, values in rows.items()}) for i in range(count)]


def assemble(reader: UnitReader, units: Sequence[Unit]) -> Batch:
    """The micro-batch of units that were read.

    It has what the reader collates, plus ``position`` `[B]` int64, ``corrupt`` (the number of units replaced for a
    reason that is not benign) and ``faults``. For groups, each name has a list with one entry per group, and ``units``
    is the total number of units.
    """
    if not units or units[0].slot is None:
        return _collate(reader, units)
    firsts = [i for i, unit in enumerate(units) if unit.slot == 0]
    groups = [units[first:last] for first, last in zip(firsts, [*firsts[1:], len(units)], strict=True)]
    return join_groups([_group(reader, group) for group in groups])


def join_groups(batches: Sequence[Batch]) -> Batch:
    """Micro-batches of groups joined into one by concatenating their lists, without padding or stacking."""
    joined: Batch = {"position": np.concatenate([batch["position"] for batch in batches])}
    for name in [n for n in batches[0] if n != "position"]:
        first, *others = (batch[name] for batch in batches)
        joined[name] = sum(others, first)  # lists or counts
    return joined


def _group(reader: UnitReader, units: Sequence[Unit]) -> Batch:
    """The micro-batch of one group: a list with one entry for each name, and its ``position``."""
    batch = _collate(reader, units)
    counts = {"corrupt": batch.pop("corrupt"), "faults": batch.pop("faults"), "units": len(units)}
    position = batch.pop("position")[:1]
    return {**{name: [value] for name, value in batch.items()}, **counts, "position": position}


def _collate(reader: UnitReader, units: Sequence[Unit]) -> Batch:
    values = [unit.value for unit in units]
    assert all(v is not None for v in values)
    batch = reader.collate([v for v in values if v is not None])
    batch["position"] = np.array([unit.position for unit in units], np.int64)
    batch["corrupt"] = sum(1 for unit in units if any(not f.benign for f in unit.faults))
    batch["faults"] = [f for unit in units for f in unit.faults]
    return batch


def _fault(reader: UnitReader, row: Mapping[str, Any], position: int, attempt: int, e: UnreadableUnit) -> Fault:
    source, benign = int(row.get("source", -1)), e.reason in reader.benign_reasons
    return Fault(position, attempt, int(row["row"]), source, e.reason, e.path, e.detail, benign)


@contextmanager
def reporting_faults(units: Sequence[Unit]) -> Iterator[None]:
    """Add the faults of `units` to a StreamError raised in the block."""
    try:
        yield
    except StreamError as e:
        e.faults = tuple(fault for unit in units for fault in unit.faults)
        raise


def count_bytes(value: Any) -> int:
    """The size of a batch in bytes: arrays, tensors and byte strings, also in lists and mappings."""
    if isinstance(value, Mapping):
        return sum(count_bytes(v) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(count_bytes(v) for v in value)
    return len(value) if isinstance(value, bytes | bytearray) else int(getattr(value, "nbytes", 0))
