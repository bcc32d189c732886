"""Plan tables: one row per unit, references only, on disk as memory-mapped Arrow IPC.

A plan is a folder: ``units.arrow`` (narrow integer columns, one row per unit), ``sources.arrow`` (a small table of
slides or archives that the ``source`` column points into) and ``plan.json`` (columns, free metadata, digests). 10^8
units of four int32 columns are 1.6 GB on disk and next to nothing in memory. The plan's `hash` is part of a run's
identity.

Not here: which row is read when (pathray.data.order).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.errors import MissingFile, UserError
from pathray.store.atomic import replace_folder
from pathray.store.cache import fetch_cached
from pathray.store.described import publish_with_description
from pathray.store.records import parse_record
from pathray.store.storage import Storage, digest_bytes

SCHEMA_VERSION = 1
CHUNK_BITS = 20
UNITS, SOURCES, DESCRIPTION = "units.arrow", "sources.arrow", "plan.json"

Column = npt.NDArray[Any]


class PlanWriter:
    """Writes a plan next to its final place and publishes it whole on `close`; an abandoned one leaves nothing behind.

    `columns` maps names to numpy integer types. Use as a context manager, or call `append` and `close`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Mapping[str, type[np.generic]],
        sources: pa.Table,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.columns = {name: np.dtype(kind) for name, kind in columns.items()}
        assert all(kind.kind in "iu" for kind in self.columns.values()), "plan columns are integers"
        self.sources, self.meta, self.rows = sources, dict(meta or {}), 0
        self._partial = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex[:8]}")
        self._partial.mkdir(parents=True)
        self._schema = pa.schema([(name, pa.from_numpy_dtype(kind)) for name, kind in self.columns.items()])
        self._file = pa.OSFile(str(self._partial / UNITS), "wb")
        self._ipc = pa.ipc.new_file(self._file, self._schema)
        self._pending: dict[str, list[Column]] = {name: [] for name in self.columns}
        self._waiting = 0

    def append(self, table: Mapping[str, npt.ArrayLike]) -> None:
        """Add units; every column of the plan, all of one length. Values outside the column's type are an error."""
        assert set(table) == set(self.columns), (sorted(table), sorted(self.columns))
        lengths = set()
        for name, kind in self.columns.items():
            values = np.asarray(table[name])
            narrow = values.astype(kind)
            if not np.array_equal(narrow, values):
                raise UserError(
                    "a plan value does not fit its column", key=name, expected=str(kind), found=_misfit(values, narrow)
                )
            self._pending[name].append(narrow)
            lengths.add(narrow.size)
        assert len(lengths) == 1, "columns of different lengths"
        self._waiting += lengths.pop()
        while self._waiting >= 1 << CHUNK_BITS:
            self._flush(1 << CHUNK_BITS)

    def close(self) -> str:
        """Publish the plan under its path and return its hash."""
        if self._waiting:
            self._flush(self._waiting)
        self._ipc.close()
        self._file.close()
        with pa.OSFile(str(self._partial / SOURCES), "wb") as f, pa.ipc.new_file(f, self.sources.schema) as ipc:
            ipc.write_table(self.sources.combine_chunks())
        description: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "rows": self.rows,
            "columns": {name: kind.name for name, kind in self.columns.items()},
            "meta": self.meta,
            "sha256": {name: _sha256(self._partial / name) for name in (UNITS, SOURCES)},
        }
        description["hash"] = _description_hash(description)
        (self._partial / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True, allow_nan=False))
        replace_folder(self._partial, self.path)
        return str(description["hash"])

    def __enter__(self) -> PlanWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._ipc.close()
            self._file.close()
            shutil.rmtree(self._partial)

    def _flush(self, count: int) -> None:
        arrays = []
        for name in self.columns:
            whole = np.concatenate(self._pending[name]) if len(self._pending[name]) != 1 else self._pending[name][0]
            arrays.append(pa.array(whole[:count]))
            self._pending[name] = [whole[count:]]
        self._ipc.write_batch(pa.record_batch(arrays, schema=self._schema))
        self.rows += count
        self._waiting -= count


class Plan:
    """An open plan. Pickles as its `origin`, the path or URL it was opened from: it travels to workers for nothing."""

    def __init__(self, path: str, description: dict[str, Any], origin: str | None = None) -> None:
        self.path, self.origin, self.hash = path, origin or path, str(description["hash"])
        self.rows, self.meta = int(description["rows"]), dict(description["meta"])
        self._units_sha256 = str(description["sha256"][UNITS])
        self.sources: pa.Table = pa.ipc.open_file(pa.memory_map(str(Path(path) / SOURCES))).read_all()
        reader = pa.ipc.open_file(pa.memory_map(str(Path(path) / UNITS)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        assert all(b.num_rows == 1 << CHUNK_BITS for b in batches[:-1])
        self._chunks = {
            name: [b.column(i).to_numpy(zero_copy_only=True) for b in batches]
            for i, name in enumerate(reader.schema.names)
        }
        self._types = {name: np.dtype(kind) for name, kind in description["columns"].items()}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Plan:
        """Open a plan folder. `verify` reads every byte and compares digests (do it once, on the driver).

        A URL is copied to the local disk first. Raises MissingFile when it is not there, UserError when it is of a
        newer schema or does not match its digests.
        """
        folder = Path(path) if "://" not in str(path) else _fetch_plan(str(path))
        if not (folder / DESCRIPTION).is_file():
            raise MissingFile("no plan here", file=folder, expected=DESCRIPTION)
        description = _parse_description((folder / DESCRIPTION).read_bytes(), str(folder / DESCRIPTION))
        if verify:
            _check_digests(folder, description, Storage.of(folder))
        return cls(str(folder), description, os.fspath(path))

    @cached_property
    def units_hash(self) -> str:
        """Digest of the units and of what their sources are called: the same when only the sources' files moved."""
        names = self.sources.column(0).to_pylist() if self.sources.num_columns else []
        return digest_bytes(json.dumps([self._units_sha256, names]).encode())

    def take(self, rows: npt.ArrayLike) -> dict[str, Column]:
        """The columns of `rows` `[N]`, in their order, each `[N]`."""
        index = np.asarray(rows, np.int64)
        assert index.size == 0 or (0 <= index.min() and index.max() < self.rows), "row outside the plan"
        chunk, offset = index >> CHUNK_BITS, index & ((1 << CHUNK_BITS) - 1)
        out = {name: np.empty(index.shape, kind) for name, kind in self._types.items()}
        for c in np.unique(chunk):
            here = chunk == c
            for name, values in out.items():
                values[here] = self._chunks[name][c][offset[here]]
        return out

    def column(self, name: str) -> Column:
        """One whole column `[rows]` (a copy when the plan has more than one chunk)."""
        chunks = self._chunks[name]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, self._types[name])])

    def segments(self, column: str = "source") -> npt.NDArray[np.int64]:
        """First row of each run of equal values in `column`: where a slide's rows begin."""
        values = self.column(column)
        return np.flatnonzero(np.diff(values, prepend=values[:1] - 1 if values.size else values)).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.open, (self.origin,)


def publish(path: str | os.PathLike[str], url: str) -> None:
    """Copy a plan folder to a storage URL, so that every node can `Plan.open` it from there; one that is there stays.

    A half-copied plan is no plan.
    """
    store, description = Storage.of(url), (Path(path) / DESCRIPTION).read_bytes()
    if not store.exists(DESCRIPTION) or store.read_bytes(DESCRIPTION) != description:
        files = {name: Path(path) / name for name in (UNITS, SOURCES)}
        publish_with_description(store, files, DESCRIPTION, description)


def _fetch_plan(url: str) -> Path:
    """A cached folder with the files of the plan at `url`, their digests checked as they are copied."""
    store = Storage.of(url)
    try:
        text = store.read_bytes(DESCRIPTION)
    except MissingFile as e:
        raise MissingFile("no plan here", file=url, expected=DESCRIPTION) from e

    def fetch(folder: Path) -> None:
        folder.mkdir()
        for name in (UNITS, SOURCES):
            store.get(name, folder / name)
        _check_digests(folder, _parse_description(text, store.join(DESCRIPTION)), store)
        (folder / DESCRIPTION).write_bytes(text)

    return fetch_cached(f"{digest_bytes(text)[:24]}-plan", fetch, store.size(UNITS) + store.size(SOURCES))


def _parse_description(text: bytes, where: str) -> dict[str, Any]:
    """The description of a plan, unaltered. UserError for damage and for a newer version."""
    description = parse_record(text, where, "description of a plan")
    version = description.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError("the plan was written by a newer version", file=where, found=version, expected=SCHEMA_VERSION)
    if "hash" not in description or description["hash"] != _description_hash(description):
        raise UserError("the plan's description was altered or is damaged", file=where, key="hash")
    return description


def _check_digests(folder: Path, description: dict[str, Any], store: Storage) -> None:
    """UserError, naming the file in `store`, when one in `folder` is not what the description says."""
    for name, digest in description["sha256"].items():
        if (found := _sha256(folder / name)) != digest:
            raise UserError("the plan is damaged", file=store.join(name), found=found, expected=digest)


def _misfit(values: Column, narrow: Column) -> Any:
    return values[values != narrow][:1].tolist()


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _description_hash(description: Mapping[str, Any]) -> str:
    body = {k: v for k, v in description.items() if k != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
