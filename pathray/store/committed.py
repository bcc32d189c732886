"""Committed directories on any storage: readers never see a half-written one.

Object stores have no rename, so a directory is written under a unique prefix (`<name>-<uid8>`) and its
``COMMITTED.json`` (names, sizes, sha256, meta) is written last. `list_committed` ignores directories without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pathray.errors import MissingFile, UserError, explain
from pathray.store.atomic import fsync
from pathray.store.records import add_seal, check_seal, parse_record, text
from pathray.store.storage import Storage, digest_bytes, digest_of
from pathray.store.storage_errors import StorageError, storage_error

log = logging.getLogger(__name__)
T = TypeVar("T")

COMMITTED = "COMMITTED.json"
SCHEMA_VERSION = 1
FIELDS = {"schema_version": int, "name": str, "created": int | float, "files": dict, "meta": dict}
ENTRY = {"size", "sha256"}
OTHERWISE = "or move the folder away to use the previous checkpoint"
REMEDY = f"the original record, {OTHERWISE}"


@dataclass(frozen=True)
class Committed:
    """A committed directory: path or URL, committed name, files and meta."""

    path: str
    name: str
    created: float
    files: dict[str, dict[str, Any]]
    meta: dict[str, Any]

    def read(self, name: str, read: Callable[[Path], T], *, verify: bool = True) -> T:
        """`read(path)` of one of its files on a local disk, after checking its size and, with `verify`, its digest.

        UserError if they do not match, MissingFile if the directory has no such file.
        """
        if name not in self.files:
            raise MissingFile(
                "not in this committed directory", file=self.path, found=sorted(self.files), expected=name
            )
        entry = self.files[name]

        def read_verified(path: Path) -> T:
            found: dict[str, Any] = {"size": path.stat().st_size}
            if verify and found["size"] == entry["size"]:
                found["sha256"] = digest_of(path)
            if any(entry[key] != value for key, value in found.items()):
                file = f"{self.path}/{name}"
                raise UserError("a committed file is damaged", file=file, found=found, expected=f"{entry}, {OTHERWISE}")
            return read(path)

        return Storage.of(self.path).read_local(name, read_verified)


@dataclass
class CommittedWriter:
    """A directory that is being written to `path`; `meta` may still be changed."""

    storage: Storage
    name: str
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.storage.url

    def write_bytes(self, name: str, data: bytes) -> None:
        self.storage.write_bytes(name, data)
        self.files[name] = {"size": len(data), "sha256": digest_bytes(data)}

    @contextlib.contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """A local path for writing `name`: in place on local storage, otherwise uploaded when the block ends."""
        if self.storage.local:
            path = Path(self.storage.path(name))
            with _clear_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                mode = path.stat().st_mode
                yield path
                path.chmod(mode)  # safetensors creates files that only their owner can read
                fsync(path)
                self._register(name, path)
            return
        with tempfile.TemporaryDirectory(prefix="pathray-") as folder:
            path = Path(folder) / name.rsplit("/", 1)[-1]
            with _clear_errors(path):
                yield path
                self._register(name, path)
            self.storage.put(path, name)

    def commit(self) -> Committed:
        for name, entry in self.files.items():
            if (found := self.storage.size(name)) != entry["size"]:
                expected = entry["size"]
                raise StorageError(
                    "the file is truncated", file=self.storage.join(name), found=found, expected=expected
                )
        if self.storage.local:
            fsync(Path(self.storage.root))
        created = time.time()
        record = {"schema_version": SCHEMA_VERSION, "name": self.name, "created": created}
        self.storage.write_bytes(COMMITTED, text(add_seal({**record, "files": self.files, "meta": self.meta})))
        return Committed(self.path, self.name, created, self.files, self.meta)

    def _register(self, name: str, path: Path) -> None:
        self.files[name] = {"size": path.stat().st_size, "sha256": digest_of(path)}


@contextlib.contextmanager
def committed_dir(parent: str, name: str, meta: dict[str, Any] | None = None) -> Iterator[CommittedWriter]:
    """Write a directory `<name>-<uid8>` under `parent`; committed when the block ends without an error.

    After an error the directory stays uncommitted and is removed if possible. `meta` must be strict JSON. Raises
    StorageError if the storage is full, forbidden or failing.
    """
    assert name and "/" not in name, name
    storage = Storage.of(parent).at(f"{name}-{uuid.uuid4().hex[:8]}")
    writer = CommittedWriter(storage, name, dict(meta or {}))
    try:
        yield writer
        writer.commit()
    except BaseException:
        try:
            remove_committed(storage.url)
        except Exception as e:  # the original error matters more
            log.warning("could not clean up %s: %s", storage.url, explain(e))
        raise


def list_committed(parent: str, name: str | None = None) -> list[Committed]:
    """The committed directories under `parent` (of one name), oldest first. UserError for a newer schema."""
    storage, found = Storage.of(parent), []
    for entry in storage.list():
        if name is not None and entry.rpartition("-")[0] != name:
            continue
        try:
            found.append(read_committed(storage.join(entry)))
        except MissingFile:
            log.debug("%s is not committed", entry)
    return sorted(found, key=lambda c: (c.created, c.path))


def read_committed(path: str) -> Committed:
    """The committed directory at `path`. MissingFile if it is not committed, UserError for a newer schema or damage."""
    storage = Storage.of(path)
    try:
        data = storage.read_bytes(COMMITTED)
    except (MissingFile, NotADirectoryError) as e:
        raise MissingFile("not a committed directory", file=path, expected=COMMITTED) from e
    where = storage.join(COMMITTED)
    record = parse_record(data, where, "record of a committed directory", REMEDY)
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError("written by a newer version", file=where, found=version, expected=f"at most {SCHEMA_VERSION}")
    _check_fields(record, where)
    check_seal(record, where, "record of a committed directory", frozenset(FIELDS), REMEDY)
    return Committed(storage.url, record["name"], record["created"], record["files"], record["meta"])


def _check_fields(record: dict[str, Any], where: str) -> None:
    """UserError unless all fields have the right type and every file a size and digest, also in unsealed records."""
    wrong = [key for key, kind in FIELDS.items() if not isinstance(record.get(key), kind)]
    files = {} if wrong else record["files"]
    wrong += [name for name, entry in files.items() if not isinstance(entry, dict) or entry.keys() != ENTRY]
    if wrong:
        raise UserError("the record is damaged", file=where, key=wrong[0], expected=REMEDY)


def remove_committed(path: str) -> None:
    """Remove a directory, its commit record first, so that a half-removed one is uncommitted. For a link, only the link
    is removed, because its target may belong to another run."""
    storage = Storage.of(path)
    if storage.local and os.path.islink(storage.path("").rstrip("/")):
        os.unlink(storage.path("").rstrip("/"))
        return
    storage.remove(COMMITTED)
    storage.remove("")


def sweep(parent: str, older_than_s: float = 3600.0) -> list[str]:
    """Remove directories under `parent` that were never committed and not touched for `older_than_s` seconds.

    Links, and directories without a `-<uid8>` ending, are kept. Committed directories are recognised without a request
    each, since a run has many. Before one is removed it is asked for its record again: a listing may leave out what it
    cannot read.
    """
    storage, swept = Storage.of(parent), []
    entries = storage.list()
    committed = {path.removesuffix(f"/{COMMITTED}") for path in storage.files() if path.endswith(f"/{COMMITTED}")}
    for entry in entries:
        uid = entry.rpartition("-")[2]
        ours = len(uid) == 8 and all(c in "0123456789abcdef" for c in uid)
        if not ours or entry in committed or (storage.local and os.path.islink(storage.path(entry))):
            continue
        touched = storage.at(entry).modified_at()
        if touched is None or time.time() - touched <= older_than_s:
            continue
        if not storage.exists(f"{entry}/{COMMITTED}"):
            storage.remove(entry)
            swept.append(entry)
    return swept


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what any library raises for a full disk into a StorageError that names the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as e:
        raise storage_error(e, str(path), writing=True) from e
    except Exception as e:
        if type(e).__name__ != "SafetensorError":
            raise
        raise storage_error(OSError(str(e)), os.fspath(path), writing=True) from e
