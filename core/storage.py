"""Local folders, gs://, s3:// and memory:// through one door: whole files written at once, and retried.

Names given to a `Storage` are relative to its root. Credentials come from the environment, never from a URL.

Not here: directories that count only when committed (core.committed), what files mean (core.checkpoint, core.artifact).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from core.errors import MissingFile, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS, FIRST_WAIT_S = 5, 0.5
FINAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG))
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
CACHE_ENV = "PATHRAY_CACHE_DIR"


class StorageError(UserError, OSError):
    """Storage that cannot be written or read: full, forbidden, or failing after retries. The message names the path."""


@dataclass(frozen=True)
class Storage:
    """A folder somewhere: `root` is its path inside the fsspec file system `fs`, `prefix` the protocol with ``://``."""

    fs: Any
    root: str
    prefix: str = ""

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> Storage:
        """A folder by path or URL; nothing is created. UserError for a protocol that is not installed."""
        import fsspec

        text = os.fspath(url)
        protocol, separator, path = text.rpartition("://")
        if not separator or protocol in ("file", "local"):
            return cls(fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path)))
        try:
            fs, root = fsspec.core.url_to_fs(text, use_listings_cache=False)
        except (ImportError, ValueError) as e:
            expected = "a path, or a protocol whose package is installed (gs:// needs gcsfs, s3:// needs s3fs)"
            raise UserError(f"no access to {protocol}:// here: {e}", file=text, expected=expected) from e
        return cls(fs, root.rstrip("/"), f"{protocol}://")

    @property
    def local(self) -> bool:
        return self.prefix == ""

    @property
    def url(self) -> str:
        """The root as `Storage.of` takes it."""
        return self.root if self.local else self.prefix + self.root.lstrip("/")

    def join(self, *parts: str) -> str:
        """Path or URL of something below the root."""
        return "/".join([self.url.rstrip("/"), *(p.strip("/") for p in parts if p)])

    def path(self, *parts: str) -> str:
        """Path inside the file system, without a protocol: what `pyarrow_fs` takes."""
        return "/".join([self.root.rstrip("/"), *(p.strip("/") for p in parts if p)]) or "/"

    def at(self, *parts: str) -> Storage:
        """The folder below."""
        return Storage(self.fs, self.path(*parts), self.prefix)

    def exists(self, name: str = "") -> bool:
        self._refresh()
        return bool(self._retried(lambda: self.fs.exists(self.path(name)), name))

    def list(self, name: str = "") -> list[str]:
        """Names of what stands directly in a folder, sorted; none in an absent one; unfinished files are left out."""
        self._refresh()
        try:
            entries = self._retried(lambda: self.fs.ls(self.path(name), detail=False), name)
        except FileNotFoundError:
            return []
        own = self.path(name).strip("/")
        names = {str(e).strip("/").rpartition("/")[2] for e in entries if str(e).strip("/") != own}
        return sorted(n for n in names if not n.startswith("."))

    def size(self, name: str) -> int:
        """Bytes of a file. MissingFile when it is not there."""
        return int(self._info(name)["size"])

    def open(self, name: str, mode: str = "rb") -> Any:
        """A file object; what is read or written through it later is not tried again.

        For whole small files use `write_bytes`, which is atomic. MissingFile when it is not there, StorageError when it
        cannot be opened.
        """
        writing = "r" not in mode

        def opened() -> Any:
            if self.local and writing:
                os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            return self.fs.open(self.path(name), mode)

        try:
            return self._retried(opened, name, writing=writing)
        except FileNotFoundError as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def read_bytes(self, name: str) -> bytes:
        """A whole file. MissingFile when it is not there."""
        try:
            data: bytes = self._retried(lambda: self.fs.cat_file(self.path(name)), name)
            return data
        except FileNotFoundError as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: readers see the old one or the new one. StorageError when it cannot be written."""

        def write(f: BinaryIO) -> None:
            f.write(data)

        path = self.path(name)
        action = (lambda: _replace(path, write)) if self.local else (lambda: self.fs.pipe_file(path, data))
        self._retried(action, name, writing=True)

    write_atomic = write_bytes

    def put(self, source: Path, name: str) -> None:
        """Copy a local file here: readers see the old one or the new one."""

        def write(f: BinaryIO) -> None:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, f, 1 << 22)

        path = self.path(name)
        action = (lambda: _replace(path, write)) if self.local else (lambda: self.fs.put_file(str(source), path))
        self._retried(action, name, writing=True)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; absent is fine. StorageError when it cannot be removed."""
        path = self.path(name)

        def remove() -> None:
            self._refresh()  # a failed attempt may have removed a part
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.fs.rm(path, recursive=self.fs.info(path)["type"] == "directory")

        self._retried(remove, name, writing=True)

    def local_copy(self, name: str) -> Path:
        """The file on a local disk, for memory mapping: itself, or a download cached by path, size and version."""
        if self.local:
            if not os.path.exists(self.path(name)):
                raise MissingFile("no such file", file=self.join(name))
            return Path(self.path(name))
        info = self._info(name)
        version = [str(info.get(k, "")) for k in ("size", "etag", "ETag", "generation", "mtime", "created")]
        digest = digest_bytes("\0".join([self.join(name), *version]).encode())[:24]
        folder = Path(os.environ.get(CACHE_ENV) or Path(tempfile.gettempdir()) / f"pathray-cache-{os.getuid()}")
        target = folder / f"{digest}-{name.rpartition('/')[2]}"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{target.name}-{uuid.uuid4().hex[:8]}"
            try:
                self._retried(lambda: self.fs.get_file(self.path(name), str(partial)), name)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def pyarrow_fs(self) -> Any:
        """This file system for pyarrow (and Ray); paths on it are `path(...)`."""
        import pyarrow.fs

        if self.local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def touched(self, name: str = "") -> float | None:
        """When a folder, or a file directly in it, was last written (epoch seconds), where the storage says so."""
        paths = [self.path(name, entry) for entry in ["", *self.list(name)]]
        times = [self._retried(partial(_time, self.fs, path), name) for path in paths]
        return max((t for t in times if t is not None), default=None)

    def _info(self, name: str) -> dict[str, Any]:
        self._refresh()
        try:
            info: dict[str, Any] = self._retried(lambda: self.fs.info(self.path(name)), name)
            return info
        except FileNotFoundError as e:
            raise MissingFile("no such file", file=self.join(name)) from e

    def _refresh(self) -> None:
        if not self.local:
            self.fs.invalidate_cache()

    def _retried(self, action: Callable[[], T], name: str, *, writing: bool = False) -> T:
        """`action()`, tried again after growing pauses while the storage fails for a while.

        A full disk, a missing permission and a missing file are final. StorageError at the end.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except Exception as e:  # object stores raise what they like, not only OSError
                if isinstance(e, ABSENT) and not writing:
                    raise
                if isinstance(e, ABSENT) or not self._may_pass(e) or attempt == ATTEMPTS:
                    raise storage_error(e, self.join(name), writing=writing) from e
                log.warning("%s: %s; trying again", self.join(name), e)
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        raise AssertionError

    def _may_pass(self, e: Exception) -> bool:
        if isinstance(e, OSError):
            return e.errno not in FINAL
        return not self.local and not isinstance(e, TypeError | AttributeError | AssertionError | NotImplementedError)


def write_atomic(path: str, data: bytes) -> None:
    """Write a file by path or URL: readers see the old one or the new one, never a part."""
    folder, _, name = path.rpartition("/")
    Storage.of(folder or ".").write_bytes(name, data)


def digest_of(path: Path) -> str:
    """sha256 of a local file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest_bytes(data: bytes) -> str:
    """sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def fsync(path: Path) -> None:
    """Make a local file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(e: Exception, path: str, *, writing: bool) -> StorageError:
    """What storage raised, as one line that names the path."""
    number = getattr(e, "errno", None)
    what = os.strerror(number) if isinstance(number, int) else str(e) or type(e).__name__
    error = StorageError(f"cannot {'write' if writing else 'read'}: {what}", file=path)
    error.errno = number
    return error


def _replace(path: str, write: Callable[[BinaryIO], None]) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f".{name}-{uuid.uuid4().hex[:8]}")
    try:
        with open(partial, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    fsync(Path(folder))


def _time(fs: Any, path: str) -> float | None:
    try:
        return float(fs.modified(path).timestamp())
    except (NotImplementedError, FileNotFoundError, IsADirectoryError, KeyError, TypeError, AttributeError):
        return None
