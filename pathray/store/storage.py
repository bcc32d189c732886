"""Access to local folders, gs://, s3:// and memory://: whole files, written atomically, with retries.

Names given to a `Storage` are relative to its root. Credentials come from the environment, never from a URL.

Not here: committed directories (pathray.store.committed), the meaning of files
(pathray.store.checkpoint, pathray.store.artifact).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pathray.errors import MissingFile, UserError
from pathray.store.atomic import replacing_file
from pathray.store.cache import fetch_cached
from pathray.store.file_systems import find_file_system
from pathray.store.storage_errors import ABSENT, may_pass, storage_error
from pathray.store.storage_errors import StorageError as StorageError
from pathray.urls import public, public_text

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS, FIRST_WAIT_S = 5, 0.5
PROBE_BYTES = 1 << 16  # more than fits into a full file system


@dataclass(frozen=True)
class Storage:
    """A folder: `root` is its path inside the fsspec file system `fs`, `prefix` the protocol with ``://``."""

    fs: Any
    root: str
    prefix: str = ""
    attempts: int = field(default=ATTEMPTS, compare=False)

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> Storage:
        """The folder at a path or URL; nothing is created. UserError for a protocol that is not installed."""
        import fsspec

        text = os.fspath(url)
        protocol, separator, path = text.rpartition("://")
        if not separator or protocol in ("file", "local"):
            return cls(fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path)))
        try:
            fs, root = find_file_system(text, use_listings_cache=False)
        except (ImportError, ValueError) as e:
            expected = "a path, or a protocol whose package is installed (gs:// needs gcsfs, s3:// needs s3fs)"
            raise UserError(f"no access to {protocol}://: {e}", file=text, expected=expected) from e
        return cls(fs, root.rstrip("/"), f"{protocol}://")

    @property
    def local(self) -> bool:
        return self.prefix == ""

    @property
    def url(self) -> str:
        """The root as a path or URL, as accepted by `Storage.of`."""
        return self.root if self.local else self.prefix + self.root.lstrip("/")

    def join(self, *parts: str) -> str:
        """The path or URL of something below the root."""
        return "/".join([self.url.rstrip("/"), *(p.strip("/") for p in parts if p)])

    def path(self, *parts: str) -> str:
        """The path inside the file system, without a protocol, as `pyarrow_fs` takes it."""
        return "/".join([self.root.rstrip("/"), *(p.strip("/") for p in parts if p)]) or "/"

    def at(self, *parts: str) -> Storage:
        """A subfolder."""
        return replace(self, root=self.path(*parts))

    def without_retries(self) -> Storage:
        """The same folder, for a thread with its own retries: each operation is tried once and logs nothing."""
        return replace(self, attempts=1)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder. StorageError if that cannot be told: `fs.exists` of many file systems
        says no to any error."""
        self._refresh()
        look = os.stat if self.local else self.fs.info
        try:
            self._retry(lambda: look(self.path(name)), name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list(self, name: str = "") -> list[str]:
        """The sorted names of a folder's entries, without unfinished files; empty if the folder does not exist."""
        self._refresh()
        try:
            entries = self._retry(lambda: self.fs.ls(self.path(name), detail=False), name)
        except FileNotFoundError:
            return []
        own = self.path(name).strip("/")
        names = {str(e).strip("/").rpartition("/")[2] for e in entries if str(e).strip("/") != own}
        return sorted(n for n in names if not n.startswith("."))

    def files(self, name: str = "") -> set[str]:
        """Relative paths of all files below a folder, at any depth, from one listing; empty if it does not exist."""
        self._refresh()
        folder = self.path(name).strip("/") + "/"
        found = self._retry(lambda: self.fs.find(self.path(name)), name)
        return {str(path).strip("/").removeprefix(folder) for path in found}

    def size(self, name: str) -> int:
        """The size of a file in bytes. MissingFile if it does not exist."""
        return int(self._info(name)["size"])

    def open(self, name: str, mode: str = "rb") -> Any:
        """A file object. Later reads and writes through it are not retried.

        For whole small files use `write_bytes`, which is atomic. MissingFile if it does not exist, StorageError if it
        cannot be opened.
        """
        writing = "r" not in mode

        def open_file() -> Any:
            if self.local and writing:
                os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            return (self.fs if writing else self._regular(name)).open(self.path(name), mode)

        try:
            return self._retry(open_file, name, writing=writing)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. MissingFile if it does not exist."""
        try:
            data: bytes = self._retry(lambda: self._regular(name).cat_file(self.path(name)), name)
            return data
        except (FileNotFoundError, NotADirectoryError) as e:
            raise MissingFile("no such file", file=self.join(name)) from e
        except IsADirectoryError as e:
            raise UserError("not a regular file", file=self.join(name), found="a folder") from e

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: readers see the old file or the new one. StorageError if it cannot be written."""

        def write(f: BinaryIO) -> None:
            f.write(data)

        path = self.path(name)
        action = (lambda: _replace(path, write)) if self.local else (lambda: self.fs.pipe_file(path, data))
        self._retry(action, name, writing=True)

    write_atomic = write_bytes

    def create_bytes(self, name: str, data: bytes) -> None:
        """Create a whole file in an object store. FileExistsError if it exists; stores without conditional writes only
        check before writing."""
        try:
            self._retry(lambda: self.fs.pipe_file(self.path(name), data, mode="create"), name, writing=True)
        except StorageError as e:
            if isinstance(e.__cause__, FileExistsError):
                raise e.__cause__ from None
            if not isinstance(e.__cause__, TypeError | NotImplementedError):
                raise
            self.write_bytes(name, data)

    def put(self, source: Path, name: str) -> None:
        """Upload a local file: readers see the old file or the new one."""

        def write(f: BinaryIO) -> None:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, f, 1 << 22)

        path = self.path(name)
        action = (lambda: _replace(path, write)) if self.local else (lambda: self.fs.put_file(str(source), path))
        self._retry(action, name, writing=True)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content, if it exists. StorageError if it cannot be removed."""
        path = self.path(name)

        def remove() -> None:
            self._refresh()  # a failed attempt may have removed some files
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.fs.rm(path, recursive=self.fs.info(path)["type"] == "directory")

        self._retry(remove, name, writing=True)

    def get(self, name: str, target: Path) -> None:
        """Download a file to a local path. MissingFile if it does not exist."""
        try:
            self._retry(lambda: self.fs.get_file(self.path(name), str(target)), name)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def local_copy(self, name: str) -> Path:
        """The file on a local disk, for memory mapping: itself, or a download cached by path, size and version.

        A download may be evicted at any time; `read_local` opens it safely.
        """
        if self.local:
            if not os.path.exists(self.path(name)):
                raise MissingFile("no such file", file=self.join(name))
            return Path(self.path(name))
        info = self._info(name)
        version = [str(info.get(k, "")) for k in ("size", "etag", "ETag", "generation", "mtime", "created")]
        digest = digest_bytes("\0".join([self.join(name), *version]).encode())[:24]
        return fetch_cached(f"{digest}-{name.rpartition('/')[2]}", lambda path: self.get(name, path), int(info["size"]))

    def read_local(self, name: str, read: Callable[[Path], T]) -> T:
        """`read(path)` of a local copy, which is fetched again if another process removed it."""
        for _ in range(ATTEMPTS):
            path = self.local_copy(name)
            try:
                return read(path)
            except FileNotFoundError:
                if path.exists():
                    raise
        raise StorageError("the local copy keeps being removed", file=self.join(name), found=path)

    def pyarrow_fs(self) -> Any:
        """This file system for pyarrow and Ray, with paths from `path(...)`."""
        import pyarrow.fs

        if self.local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def modified_at(self, name: str = "") -> float | None:
        """When a folder or a file directly in it was last written (epoch seconds), if the storage records it."""
        paths = [self.path(name, entry) for entry in ["", *self.list(name)]]
        times = [self._retry(partial(_time, self.fs, path), name) for path in paths]
        return max((t for t in times if t is not None), default=None)

    def _regular(self, name: str) -> Any:
        """The file system for reading `name`, after checking that a local file is regular."""
        if self.local:
            check_regular(self.path(name))
        return self.fs

    def _info(self, name: str) -> dict[str, Any]:
        self._refresh()
        try:
            info: dict[str, Any] = self._retry(lambda: self.fs.info(self.path(name)), name)
            return info
        except (FileNotFoundError, NotADirectoryError) as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def _refresh(self) -> None:
        if not self.local:
            self.fs.invalidate_cache()

    def _retry(self, action: Callable[[], T], name: str, *, writing: bool = False) -> T:
        """`action()`, retried with growing pauses while the storage fails temporarily.

        A full disk, a missing permission and a missing file are not retried. Raises StorageError.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except Exception as e:  # object stores raise more than OSError
                if isinstance(e, (*ABSENT, UserError)) and not writing:
                    raise
                passing = may_pass(e, local=self.local)
                if not passing or attempt == self.attempts:
                    error = storage_error(e, self.join(name), writing=writing)
                    error.passing = passing
                    raise error from e
                said = public_text(str(e)) or type(e).__name__
                log.warning("%s: %s; retrying", public(self.join(name)), said)
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        raise AssertionError


def write_atomic(path: str, data: bytes) -> None:
    """Write a file at a path or URL: readers see the old file or the new one, never a part."""
    folder, slash, name = path.rpartition("/")
    Storage.of(folder or slash or ".").write_bytes(name, data)


def check_writable(path: str, key: str) -> None:
    """UserError, naming `key`, if a local path cannot be written: a file is in the way, or the nearest existing folder
    is read-only, forbidden or full. Leaves nothing behind and creates no folder; URLs are not checked."""
    if "://" in path and not path.startswith(("file://", "local://")):
        return
    target = Path(Storage.of(path).root)
    nearest = next((p for p in target.parents if os.path.lexists(p)), Path("/"))
    if not nearest.is_dir():
        raise UserError("a file is in the way of the output", file=nearest, key=key, found=path, expected="a folder")
    nearest = target if target.is_dir() else nearest
    probe = nearest / f".pathray-probe-{uuid.uuid4().hex[:8]}"
    try:
        with open(probe, "wb") as f:
            f.write(bytes(PROBE_BYTES))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        expected = "a folder that this user can write to, with free space"
        raise UserError(
            f"the output cannot be written: {e.strerror}", file=nearest, key=key, found=path, expected=expected
        ) from e
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def check_regular(path: str) -> None:
    """UserError for a folder, pipe or device (opening a pipe would wait for a writer). MissingFile or another OSError
    if the path cannot be read."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        raise MissingFile("no such file", file=path) from None
    if not stat.S_ISREG(kind):
        found = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
        raise UserError("not a regular file", file=path, found=found)


def digest_of(path: Path) -> str:
    """sha256 of a local file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest_bytes(data: bytes) -> str:
    """sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_state(path: str) -> str:
    """A text that changes with a file: its size and time, or the store's tag; for a folder, those of all its files."""
    import fsspec

    local = "://" not in path  # a name may contain "::", which fsspec interprets as a chain of file systems
    fs, inner = (fsspec.filesystem("file"), os.path.abspath(path)) if local else find_file_system(path)
    try:
        info = fs.info(inner)
        if info["type"] != "directory":
            return _state(info)
        within: dict[str, Any] = fs.find(inner, detail=True)
    except FileNotFoundError as e:
        raise MissingFile("no such file", file=public(path)) from e
    return f"{len(within)} files: " + " ".join(_state(within[name]) for name in sorted(within))


def _state(info: dict[str, Any]) -> str:
    tag = next((info[k] for k in ("generation", "ETag", "etag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size', '')}:{tag}"


def _replace(path: str, write: Callable[[BinaryIO], None]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(target, target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")) as partial:
        with open(partial, "wb") as f:
            write(f)


def _time(fs: Any, path: str) -> float | None:
    try:
        return float(fs.modified(path).timestamp())
    except (NotImplementedError, FileNotFoundError, IsADirectoryError, KeyError, TypeError, AttributeError):
        return None
