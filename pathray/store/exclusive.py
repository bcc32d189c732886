"""Small files that only one process may write at a time: created if they do not exist, replaced only by their owner.

On a disk this is exact (a hard link, a lock on the folder). Object stores have no locks: a file is created
conditionally, if the store supports it, and read back after a moment, so that one of two writers wins. Not here:
ownership and its duration (pathray.run.fence, pathray.evaluation.results).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator

from pathray.errors import MissingFile
from pathray.store.storage import Storage
from pathray.store.storage_errors import storage_error

SETTLE_S = 1.0  # after this time a simultaneous write of another process is visible
LOCK_WAIT_S = 2.0


def content(store: Storage, name: str) -> bytes | None:
    """The bytes of a file; None if it does not exist."""
    try:
        return store.read_bytes(name)
    except MissingFile:
        return None


def create(store: Storage, name: str, data: bytes, settle_s: float = SETTLE_S) -> bool:
    """Create a file; returns whether the existing file is ours. `data` must be unique to this process."""
    if store.local:
        _create_local(store.path(name), data)
        return content(store, name) == data
    _create_object(store, name, data)
    return _is_settled(store, name, data, settle_s)


def swap(
    store: Storage, name: str, may: Callable[[bytes | None], bool], data: bytes, settle_s: float = SETTLE_S
) -> bool:
    """Replace a file if `may` allows it for its bytes (None if it does not exist); returns whether the file is ours.

    `settle_s` is 0 for a process that already owns the file.
    """
    with _lock_folder(store, name) as locked:
        if not may(content(store, name)):
            return False
        store.write_bytes(name, data)
    return locked or _is_settled(store, name, data, settle_s)


def discard(store: Storage, name: str, may: Callable[[bytes | None], bool]) -> bool:
    """Remove a file if `may` allows it for its bytes; returns whether it was removed."""
    with _lock_folder(store, name):
        found = content(store, name)
        if found is None or not may(found):
            return False
        store.remove(name)
        return True


def _is_settled(store: Storage, name: str, data: bytes, settle_s: float) -> bool:
    if settle_s > 0:
        time.sleep(settle_s)
        return content(store, name) == data
    return True


def _create_local(path: str, data: bytes) -> None:
    """Create a file atomically, only if it does not exist."""
    partial = f"{os.path.dirname(path)}/.{os.path.basename(path)}-{uuid.uuid4().hex[:8]}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(partial, data)
        try:
            with contextlib.suppress(FileExistsError):  # somebody was first: the caller compares what is there
                os.link(partial, path)
        except OSError:  # a file system without hard links
            with contextlib.suppress(FileExistsError):
                _write(path, data)
        finally:
            os.unlink(partial)
    except OSError as e:
        raise storage_error(e, path, writing=True) from e


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _create_object(store: Storage, name: str, data: bytes) -> None:
    if content(store, name) is not None:
        return
    try:
        store.create_bytes(name, data)
    except FileExistsError:  # it may be ours if the response was lost
        return


@contextlib.contextmanager
def _lock_folder(store: Storage, name: str) -> Iterator[bool]:
    """Lock the folder so that no other process replaces its files; yields False if it cannot be locked."""
    folder = os.path.dirname(store.path(name))
    if not store.local or not os.path.isdir(folder):
        yield False
        return
    descriptor: int | None = None
    with contextlib.suppress(OSError):  # a network file system may lose a folder for a moment
        descriptor = os.open(folder, os.O_RDONLY)
    if descriptor is None:
        yield False
        return
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        except OSError:  # some network file systems have no locks
            return False
