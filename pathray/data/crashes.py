"""What a decoder that ends its process was at: so that a run survives a slide that no library survives.

Each process that decodes keeps a journal on its local disk: a small memory-mapped file with the unit that each thread
is reading, and a file that the interpreter writes to when the process ends by SIGSEGV, SIGABRT, SIGBUS, SIGFPE or
SIGILL. Whoever starts next on that machine turns the journals of dead processes into notes in the run's folder. A unit
that ended a process twice, and every unit of a slide that did so three times, is unreadable from then on, with the
reason ``crashed_decoder``: replaced as any other, and in the same way on every later start.

Processes that are killed from outside leave no note: their units are not to blame. Not here: reads that hang
(pathray.data.stream); who is started again (ray_jobs.train.attempts).
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import fcntl
import json
import logging
import mmap
import os
import re
import struct
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathray.data.plan import Plan
from pathray.data.units import Batch, UnitReader
from pathray.errors import UnreadableUnit
from pathray.store.outages import through_outages
from pathray.store.records import add_seal, check_seal, parse_record, text
from pathray.store.storage import Storage, digest_bytes

log = logging.getLogger(__name__)

REASON, FOLDER = "crashed_decoder", "crashes"  # of the fault; of the notes in a run's folder
UNIT_DEATHS, SOURCE_DEATHS = 2, 3  # deaths after which a unit, or a whole source, is no longer read
HEAD = 64  # bytes: `units_hash` of the plan that rows and sources are of
SLOT = struct.Struct("<Qqqq")  # thread, position, row, source
SLOTS = 256
FREE = (0, -1, -1, -1)
GONE = FileNotFoundError, BlockingIOError, PermissionError
_THREAD = re.compile(r"Current thread (0x[0-9a-f]+)")
_SIGNAL = re.compile(r"Fatal Python error: (.+)")
_begun: dict[tuple[str, str], _Begun] = {}
_beginning = threading.Lock()


class Journal:
    """The units that this process is reading, for whoever looks when it has ended. Costs a microsecond a unit."""

    def __init__(self, run: str, plan: str) -> None:
        folder = _local(run)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.units, self.trace = folder / f"{name}.units", folder / f"{name}.trace"
        new = folder / f".{name}"
        self._file = open(new, "w+b")
        self._file.write(plan.encode().ljust(HEAD)[:HEAD] + SLOT.pack(*FREE) * SLOTS)
        self._file.flush()
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held until the process ends, however it does
        self._map = mmap.mmap(self._file.fileno(), HEAD + SLOT.size * SLOTS)
        self._trace = open(self.trace, "wb", buffering=0)
        os.replace(new, self.units)
        self._own, self._lock, self._free = threading.local(), threading.Lock(), list(range(SLOTS))
        self._before = faulthandler.is_enabled()
        faulthandler.enable(self._trace, all_threads=True)
        atexit.register(self.close)

    @contextlib.contextmanager
    def reading(self, position: int, row: int, source: int) -> Iterator[None]:
        """Note the unit that the calling thread reads in the block."""
        slot = self._slot()
        if slot is None:
            yield
            return
        SLOT.pack_into(self._map, HEAD + slot * SLOT.size, threading.get_ident(), position, row, source)
        try:
            yield
        finally:
            SLOT.pack_into(self._map, HEAD + slot * SLOT.size, *FREE)

    def close(self) -> None:
        """The process continues, or ends well: leave nothing behind."""
        if self._file.closed:
            return
        faulthandler.disable()
        if self._before and sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError):  # a standard error that is no file
                faulthandler.enable(sys.__stderr__)
        for path in (self.units, self.trace):
            path.unlink(missing_ok=True)
        self._trace.close()
        self._file.close()
        atexit.unregister(self.close)

    def _slot(self) -> int | None:
        if not hasattr(self._own, "slot"):
            with self._lock:
                self._own.slot = self._free.pop() if self._free else None  # threads that hang never give theirs back
        slot: int | None = self._own.slot
        return slot


@dataclass(frozen=True)
class Excluded:
    """What is read no more: rows of the plan, and whole sources."""

    rows: frozenset[int] = frozenset()
    sources: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rows or self.sources)


@dataclass
class Guarded:
    """A reader that notes what it reads, and does not read what has ended processes before.

    run: the run's folder. excluded: what the run knew when it started, the same in every process. A unit that ended two
    processes since is refused, too, by every process begun afterwards: where Ray Data tries a task again and again, the
    next try gets over it.
    """

    reader: UnitReader
    run: str
    plan: Plan
    excluded: Excluded = field(default_factory=Excluded)
    units_hash: str = ""  # of the plan

    def __post_init__(self) -> None:
        self.units_hash = self.units_hash or self.plan.units_hash

    @property
    def benign_reasons(self) -> frozenset[str]:
        return self.reader.benign_reasons

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        row, source = int(unit["row"]), int(unit.get("source", -1))
        if source in self.excluded.sources:
            raise UnreadableUnit(
                REASON, self._name(row, source), f"decoding it crashed the process {SOURCE_DEATHS} times"
            )
        begun = _begun.get((self.run, self.units_hash)) or begin(self.run, self.units_hash)
        if row in self.excluded.rows or row in begun.rows:
            raise UnreadableUnit(
                REASON, self._name(row, source), f"decoding this unit crashed the process {UNIT_DEATHS} times"
            )
        if begun.journal is None:
            return self.reader.read(unit, position, attempt)
        with begun.journal.reading(position, row, source):
            return self.reader.read(unit, position, attempt)

    def collate(self, units: Sequence[dict[str, Any]]) -> Batch:
        return self.reader.collate(units)

    def _name(self, row: int, source: int) -> str:
        return str(self.plan.sources.column(0)[source]) if source >= 0 else f"row {row}"


@dataclass(frozen=True)
class _Begun:
    """What a process has of a run: its journal, and the rows that were known to end processes when it began."""

    journal: Journal | None
    rows: frozenset[int]


def begin(run: str, plan: str) -> _Begun:
    """Start reading for a run in this process: note what dead processes left, look at the notes, open a journal.

    Where the temporary folder takes no journal there is a warning and none: that is no reason to end the run.
    """
    with _beginning:
        key = run, plan
        if key not in _begun:
            through_outages(lambda: note_crashes(run), "decoding")
            journal = None
            try:
                journal = Journal(run, plan)
            except OSError as e:
                log.warning("decoder crashes cannot be traced to a unit, because no journal could be opened: %s", e)
            _begun[key] = _Begun(
                journal, decide_exclusions(through_outages(lambda: read_notes(run), "decoding"), plan).rows
            )
        return _begun[key]


def end(run: str) -> None:
    """The run is over in this process, or ends with an error of its own: leave no journal behind."""
    with _beginning:
        ended = [_begun.pop(key) for key in list(_begun) if key[0] == run]
    for begun in ended:
        if begun.journal is not None:
            begun.journal.close()


def note_crashes(run: str) -> int:
    """Turn what dead processes of this machine left into notes in the run's folder; how many there were."""
    crashes = 0
    for units in sorted(_local(run).glob("*.units")):
        with contextlib.suppress(*GONE), open(units, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process lives, or another one looks at it
            trace = units.with_suffix(".trace")
            told = trace.read_bytes().decode(errors="replace") if trace.exists() else ""
            plan = file.read(HEAD).decode(errors="replace").strip()
            if found := _units_to_blame(file.read(), told):
                _note(run, units.stem, plan, found, told)
                crashes += 1
            units.unlink()
            trace.unlink(missing_ok=True)
    return crashes


def read_notes(run: str) -> list[dict[str, Any]]:
    """The notes in a run's folder. UserError for a damaged one."""
    store = Storage.of(run).at(FOLDER)
    notes = []
    for name in (n for n in store.list() if n.endswith(".json")):
        note = parse_record(store.read_bytes(name), store.join(name), "note of a crash")
        check_seal(note, store.join(name), "note of a crash", frozenset())
        notes.append(note)
    return notes


def decide_exclusions(notes: Iterable[Mapping[str, Any]], plan: str) -> Excluded:
    """What these notes forbid in the plan of this `units_hash`."""
    by_row, by_source = Counter[int](), Counter[int]()
    for note in (n for n in notes if n["plan"] == plan):
        by_row.update({int(unit["row"]) for unit in note["units"]})
        by_source.update({int(unit["source"]) for unit in note["units"]} - {-1})
    return Excluded(
        frozenset(row for row, deaths in by_row.items() if deaths >= UNIT_DEATHS),
        frozenset(source for source, deaths in by_source.items() if deaths >= SOURCE_DEATHS),
    )


def _local(run: str) -> Path:
    return Path(tempfile.gettempdir()) / f"pathray-decoding-{os.getuid()}" / digest_bytes(run.encode())[:16]


def _units_to_blame(slots: bytes, trace: str) -> list[dict[str, int]]:
    """The units to blame for the death that `trace` tells of; none for a death from outside, or elsewhere.

    The thread that the signal hit is known where it is one of Python's. Of a thread that is not, a broken read of
    memory may be a decoder's own: it is put down to the one unit that was being read, and to none where there were
    several. An abort there is a communication library's that lost its peer.
    """
    signal, thread = _SIGNAL.search(trace), _THREAD.search(trace)
    if signal is None or (thread is None and signal[1].startswith("Aborted")):
        return []
    units = [SLOT.unpack_from(slots, at) for at in range(0, len(slots) - SLOT.size + 1, SLOT.size)]
    busy = [(ident, *unit) for ident, *unit in units if unit[1] >= 0]
    if thread is not None:
        busy = [unit for unit in busy if unit[0] == int(thread[1], 16)]
    elif len(busy) > 1:
        return []
    return [{"position": position, "row": row, "source": source} for _, position, row, source in busy]


def _note(run: str, name: str, plan: str, units: list[dict[str, int]], trace: str) -> None:
    what = _SIGNAL.search(trace)
    log.warning("a process ended while it read %s:\n%s", json.dumps(units), trace.strip())
    note = add_seal({"plan": plan, "units": units, "signal": what[1] if what else "", "trace": trace[:4000]})
    Storage.of(run).at(FOLDER).write_bytes(f"{name}.json", text(note))
