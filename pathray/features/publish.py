"""Publishes files that are too large for memory, completely or not at all, on local and remote storage.

Not here: small files (`Storage.write_bytes`), committed directories (pathray.store.committed).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pathray.errors import MissingFile
from pathray.store.atomic import publish_file
from pathray.store.liveness import is_gone, machine
from pathray.store.storage import Storage
from pathray.store.storage_errors import StorageError, storage_error

ABANDONED_S = 86400.0  # a partial file of another machine is abandoned after this time
_PARTIAL = re.compile(r"\..+-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.partial(\.\d+\.part)?")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[Path]:
    """A local file to write, which replaces `path` (local or URL) when the block ends without an error.

    Readers see either the old file or the new one. StorageError if it cannot be published. A killed process leaves a
    hidden partial file, which `sweep` removes.
    """
    folder, _, name = path.rpartition("/")
    store = Storage.of(folder or ".")
    if not store.local:
        with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
            partial = Path(temporary) / name
            yield partial
            store.put(partial, name)
        return
    target = Path(store.path(name))
    partial = target.with_name(f".{name}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    with clear_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with clear_errors(path):
            publish_file(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: str) -> list[str]:
    """Remove partial files from a local folder: those whose process is gone, and those of other machines after a
    day."""
    store = Storage.of(folder)
    if not store.local or not os.path.isdir(store.root):
        return []
    swept = []
    with os.scandir(store.root) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match is not None and _is_abandoned(match["host"], int(match["pid"]), entry):
                Path(entry.path).unlink(missing_ok=True)
                swept.append(entry.path)
    return sorted(swept)


@contextlib.contextmanager
def clear_errors(path: str) -> Iterator[None]:
    """Turn errors while `path` is written (a full disk, a missing permission) into a StorageError that names it."""
    try:
        yield
    except (MissingFile, StorageError):
        raise
    except (OSError, RuntimeError) as e:  # h5py raises either
        raise storage_error(e, path, writing=True) from e


def _host() -> str:
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{socket.gethostname()}/{machine()}").hex[:8]


def _is_abandoned(host: str, pid: int, entry: os.DirEntry[str]) -> bool:
    if host == _host():
        return bool(is_gone({"host": socket.gethostname(), "pid": pid}))
    with contextlib.suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime > ABANDONED_S
    return False
