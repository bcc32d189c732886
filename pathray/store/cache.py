"""Local copies of remote files in a private folder of this machine, the least recently used of which make room."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pathray.errors import UserError
from pathray.store.storage_errors import storage_error

CACHE_ENV = "PATHRAY_CACHE_DIR"
CACHE_BYTES, ABANDONED_S = 20 * 10**9, 86400.0  # an unfinished copy is abandoned after this time
CACHED = re.compile(r"\.?[0-9a-f]{24}-.+")


def private_cache() -> Path:
    """The folder for local copies of remote files: PATHRAY_CACHE_DIR, or a private one in the temporary folder.
    UserError if the latter is a link or belongs to another user."""
    given = os.environ.get(CACHE_ENV)
    folder = Path(given or Path(tempfile.gettempdir()) / f"pathray-cache-{os.getuid()}")
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        found = folder.stat() if given else folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if own and not given and stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as e:
        raise storage_error(e, str(folder), writing=True) from e
    if not own and not given:
        what = "a link" if folder.is_symlink() else f"owned by user {found.st_uid}"
        expected = f"a folder of your own; set {CACHE_ENV}"
        raise UserError("the cache folder is not your own", file=folder, found=what, expected=expected)
    return folder


def fetch_cached(
    name: str, fetch: Callable[[Path], object], size: int, folder: Path | None = None, limit: int | None = None
) -> Path:
    """The file or folder `name` in the cache, made by `fetch(path)` if it does not exist.

    `name` begins with 24 hexadecimal digits that identify the content. Before fetching, the least recently used entries
    are removed until `size` bytes fit into `limit`: by default CACHE_BYTES, or a tenth of the disk if that is less. The
    cache is `folder`, which exists, or the private one.
    """
    folder = private_cache() if folder is None else folder
    target, partial = folder / name, folder / f".{name}-{uuid.uuid4().hex[:8]}"
    assert CACHED.fullmatch(name), name
    with contextlib.suppress(FileNotFoundError):
        os.utime(target)  # checks and marks it as used in one step, since others may be evicting
        return target
    _make_room(folder, size, limit)
    try:
        fetch(partial)
        os.replace(partial, target)
    except OSError:
        if not target.exists():  # it exists if another process was first
            raise
    finally:
        _discard(partial)
    return target


def _make_room(folder: Path, size: int, limit: int | None) -> None:
    """Remove the least recently used entries that `fetch_cached` made, except those still being fetched."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if CACHED.fullmatch(path.name):
                files = list(path.iterdir()) if path.is_dir() else [path]
                entries.append((path.stat().st_mtime, sum(f.stat().st_size for f in files), path))
    allowed = min(CACHE_BYTES, shutil.disk_usage(folder).total // 10) if limit is None else limit
    room = allowed - size - sum(n for _, n, _ in entries)
    for used, bytes_, path in sorted(entries):
        if room >= 0:
            return
        if not path.name.startswith(".") or time.time() - used > ABANDONED_S:
            _discard(path)
            room += bytes_


def _discard(path: Path) -> None:
    """Remove a file or folder, atomically for readers, if it exists."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            gone = path.with_name(f".{path.name.lstrip('.')}-{uuid.uuid4().hex[:8]}")
            os.replace(path, gone)
            shutil.rmtree(gone)
        else:
            path.unlink()
