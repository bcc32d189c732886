"""Writes a patch index: archives through any ordered map, stored in parts as they come, merged in order.

Parts are next to the index (`INDEX_parts/`): each holds some archives with the state of their files, and is written
atomically. A killed job resumes from them, and in a folder that grew only new archives are read. Unreadable archives
are tried again. Not here: what is in an archive (adios.patches.index); the distribution over a cluster.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from adios.patches.index import OTHER, QUARANTINE, SCHEMA, SCHEMA_VERSION, Archive, Found, Refused, index_archive
from pathray.errors import UserError
from pathray.store.sealed_parquet import SealedFile, SealedWriter, to_bytes
from pathray.store.storage import Storage
from pathray.urls import public

log = logging.getLogger(__name__)

PART_ROWS, PART_ARCHIVES = 1 << 17, 1024  # size of a part: what a kill may lose
ROW_GROUP = 1 << 18
OPEN_PARTS, SHOWN = 16, 10

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Job = tuple[Archive, str | None]


@dataclass
class Summary:
    """Counts of an index. `kept`: unchanged archives; `reasons`: members left out, by reason."""

    archives: int = 0
    kept: int = 0
    corrupt: int = 0
    patches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        known = f" ({self.kept} unchanged)" if self.kept else ""
        return f"{self.patches} patches in {self.archives} archives{known}; left out: {out or 'nothing'}"


def quarantine_path(output: str) -> str:
    return f"{output.removesuffix('.parquet')}_quarantine.parquet"


def index_patches(
    root: str,
    archives: Sequence[Archive],
    output: str,
    *,
    max_corrupt_fraction: float,
    map: OrderedMap = map,
    tick: Callable[[], None] = lambda: None,
) -> Summary:
    """Index `archives` (sorted by name) into the parquet file `output`, with the quarantine next to it.

    `map` is any ordered map; the function and the items passed to it are picklable, `tick` is called for every archive.
    UserError, and no index, if more than `max_corrupt_fraction` of the archives or of their members are unusable, or if
    there is no patch at all; the quarantine is written in any case.
    """
    parts = _Parts(f"{output.removesuffix('.parquet')}_parts")
    summary, refused = Summary(len(archives)), list[Refused]()
    jobs = [(archive, parts.state(archive.name)) for archive in archives]
    try:
        for found in map(index_one, jobs):
            if found.table is None:
                summary.kept += 1
                refused += parts.refusals(found.archive)
            else:
                refused += found.refused
                parts.add(found)
            summary.corrupt += found.corrupt
            tick()
            if summary.corrupt > max_corrupt_fraction * len(archives):
                break
    finally:
        parts.flush()
        _write_quarantine(quarantine_path(output), refused)
    for line in refused:
        summary.reasons[line.reason] += line.members
    names = [archive.name for archive in archives]
    summary.patches = sum(parts.rows(name) for name in names)
    _check(summary, refused, root, output, max_corrupt_fraction)
    _write(parts, names, output, root)
    parts.forget_others(names)
    return summary


def index_one(job: Job) -> Found:
    return index_archive(*job)


def report_death(job: Job, error: Exception) -> Found:
    """The outcome of an archive on which the indexing process died."""
    line = Refused(job[0].name, "", "died", f"reading it {error}")
    return Found(job[0].name, "", SCHEMA.empty_table(), (line,))


def _check(summary: Summary, refused: Sequence[Refused], root: str, output: str, allowed: float) -> None:
    bad = [line for line in refused if line.reason != OTHER]
    members = sum(line.members for line in bad if line.name)
    shown = [f"{line.archive}{'!' * bool(line.name)}{line.name}: {line.reason} {line.detail}" for line in bad[:SHOWN]]
    told = "\n  ".join(["", *shown, *([f"and {len(bad) - SHOWN} more"] * (len(bad) > SHOWN)), ""])
    for count, of, what in (
        (summary.corrupt, summary.archives, "archives"),
        (members, members + summary.patches, "members"),
    ):
        if count > allowed * of:
            raise UserError(
                f"{count} of {of} {what} are corrupt:{told}",
                file=quarantine_path(output),
                key="max_corrupt_fraction",
                found=round(count / of, 4),
                expected=f"at most {allowed}",
            )
    if not summary.patches:
        expected = "members such as patch_001_448_x100_y200.png"
        raise UserError("there are no patches", file=public(root), found=str(summary), expected=expected)


def _write(parts: _Parts, names: Sequence[str], output: str, root: str) -> None:
    """The rows of `names` in their order, in groups of ROW_GROUP independent of their parts: equal rows give equal
    bytes."""
    folder, _, name = output.rpartition("/")
    store = Storage.of(folder or ".")
    layout = SCHEMA.with_metadata({"schema_version": str(SCHEMA_VERSION), "root": root})
    if store.local:
        os.makedirs(store.root, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".index-", dir=store.root if store.local else None) as scratch:
        path = Path(scratch) / name
        with SealedWriter(str(path), layout) as writer:
            for table in _regroup(parts.table(name) for name in names):
                writer.write(table.cast(layout))
        store.put(path, name)


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting, rows = list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        while rows >= ROW_GROUP:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, ROW_GROUP).combine_chunks()
            waiting, rows = [whole.slice(ROW_GROUP)], rows - ROW_GROUP
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _write_quarantine(path: str, refused: Sequence[Refused]) -> None:
    folder, _, name = path.rpartition("/")
    table = pa.Table.from_pylist([asdict(line) for line in refused], QUARANTINE)
    Storage.of(folder or ".").write_bytes(name, to_bytes(table))


@dataclass(frozen=True)
class _Kept:
    """An archive in a part: its row group (−1: no patches), and its state when it was read."""

    part: str
    group: int
    rows: int
    state: str
    refused: tuple[Refused, ...]


class _Parts:
    """The parts of an index. One writer; if an archive is in several parts, the newest counts."""

    def __init__(self, folder: str) -> None:
        self.store = Storage.of(folder)
        self.kept: dict[str, _Kept] = {}
        self._open: OrderedDict[str, SealedFile] = OrderedDict()
        self._waiting: list[Found] = []
        self.names = [name for name in self.store.list() if name.startswith("part-")]
        for name in list(self.names):
            try:
                self._register(name)
            except UserError as e:
                log.warning("%s; its archives are read again", e)
                self.names.remove(name)
                self.store.remove(name)

    def state(self, archive: str) -> str | None:
        return self.kept[archive].state if archive in self.kept else None

    def refusals(self, archive: str) -> tuple[Refused, ...]:
        return self.kept[archive].refused

    def rows(self, archive: str) -> int:
        return self.kept[archive].rows if archive in self.kept else 0

    def table(self, archive: str) -> pa.Table:
        kept = self.kept.get(archive)
        if kept is None or kept.group < 0:
            return SCHEMA.empty_table()
        return self._part(kept.part).read_group(kept.group)

    def add(self, found: Found) -> None:
        """Store what was found, except what could not be read, so that it is tried again."""
        self.kept.pop(found.archive, None)
        if found.corrupt:
            return
        self._waiting.append(found)
        rows = sum(f.table.num_rows for f in self._waiting if f.table is not None)
        if rows >= PART_ROWS or len(self._waiting) >= PART_ARCHIVES:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        number = 1 + max((int(name[5:].partition(".")[0]) for name in self.names), default=0)
        name, lines, tables = f"part-{number:08d}.parquet", [], list[pa.Table]()
        for found in self._waiting:
            assert found.table is not None
            group = len(tables) if found.table.num_rows else -1
            tables += [found.table] * (group >= 0)
            refused = [asdict(line) for line in found.refused]
            lines.append([found.archive, group, found.table.num_rows, found.state, refused])
        buffer = io.BytesIO()
        layout = SCHEMA.with_metadata({"version": str(SCHEMA_VERSION), "archives": json.dumps(lines)})
        with SealedWriter(buffer, layout) as writer:
            for table in tables:
                writer.write(table.cast(layout))
        self.store.write_bytes(name, buffer.getvalue())
        self._waiting = []
        self.names.append(name)
        self._register(name)

    def forget_others(self, archives: Iterable[str]) -> None:
        """Remove parts that no longer hold any of `archives`."""
        used = {self.kept[name].part for name in archives if name in self.kept}
        for name in set(self.names) - used:
            self.store.remove(name)

    def _register(self, name: str) -> None:
        meta = self._part(name).meta
        if meta.get("version") != str(SCHEMA_VERSION):
            return
        for archive, group, rows, state, refused in json.loads(meta["archives"]):
            self.kept[archive] = _Kept(name, group, rows, state, tuple(Refused(**line) for line in refused))

    def _part(self, name: str) -> SealedFile:
        if name not in self._open:
            self._open[name] = SealedFile(self.store.open(name), self.store.join(name), "part of a patch index")
        self._open.move_to_end(name)
        while len(self._open) > OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        return self._open[name]
