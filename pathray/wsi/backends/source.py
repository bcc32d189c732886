"""Reads bytes of a slide file at given offsets: positioned reads for local files, range requests for URLs.

No file offset is shared, so a source is safe in several threads and after a fork. Not here: caching, decoding.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit, UserError
from pathray.store.file_systems import find_file_system
from pathray.store.storage import check_regular
from pathray.store.storage_errors import may_pass
from pathray.urls import is_url, local_path, public

T = TypeVar("T")

PARSE_BLOCK = 1 << 18  # bytes fetched at a time while the structure of a remote file is parsed
PAUSES_S = (0.1, 0.3)  # before the second and the third try of a request, on average
RETRY_S = 1.0  # no further try after this time: the file system has made its own, and a read has a time limit
_chance = random.SystemRandom()  # no two processes draw the same, also after a fork


class ByteSource(Protocol):
    """Positioned reads of one file. `ranges` are (offset, size); a range beyond the end of the file is cut short."""

    size: int

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]: ...

    def open_buffered(self) -> BinaryIO: ...

    def close(self) -> None: ...


def open_source(path: str) -> ByteSource:
    """Open a path or URL. MissingFile if it does not exist; UserError if it is not readable or its scheme is
    unknown; UnreachableUnit if its storage cannot be reached now."""
    return RemoteFile(path) if is_url(path) else LocalFile(local_path(path))


def read_source(path: str) -> bytes:
    """The whole content of a path or URL, an object by one request. Raises what `open_source` and reading raise."""
    if is_url(path):
        return read_object(path)
    source = open_source(path)
    try:
        return source.read_many([(0, source.size)])[0]
    finally:
        source.close()


def read_object(url: str) -> bytes:
    """The whole content of the object at `url`, by one request: its size is not asked for first."""
    fs, path = _find(url)
    try:
        return cast(bytes, retry_request(url, lambda: fs.cat_file(path)))
    except FileNotFoundError:
        raise MissingFile("no such object", file=public(url)) from None
    except UnreachableUnit:
        raise
    except TimeoutError as e:
        raise UnreadableUnit("timeout", public(url), type(e).__name__) from None
    except Exception as e:  # every file system raises its own kinds
        raise UserError(f"the object cannot be opened: {type(e).__name__}", file=public(url)) from None


def retry_request(url: str, request: Callable[[], T]) -> T:
    """`request()`, tried again at once while the storage of `url` fails temporarily; then UnreachableUnit.

    Raises any other error of the request as it is.
    """
    began, pauses = time.monotonic(), iter(PAUSES_S)
    while True:
        try:
            return request()
        except Exception as e:  # every file system raises its own kinds
            if not _is_temporary(e):
                raise
            pause = next(pauses, None)
            if pause is not None:
                pause *= 0.5 + _chance.random()  # readers that failed together do not come back together
            if pause is None or time.monotonic() - began + pause > RETRY_S:
                raise UnreachableUnit(public(url), f"{type(e).__name__} in a request") from None
        time.sleep(pause)


def _is_temporary(e: Exception) -> bool:
    """`may_pass`, but no timeout of the reader's own, which makes the unit slow, and no error of the request itself.

    An object that came with another size or checksum than its storage says is asked for again, whatever the exception.
    """
    if isinstance(e, TimeoutError):
        return e.errno == errno.ETIMEDOUT  # of the connection
    if "mismatch" in str(e).lower() and not isinstance(e, UserError | UnreadableUnit):
        return True
    return may_pass(e) and not isinstance(e, UnreadableUnit | ValueError | LookupError | ImportError)


class LocalFile:
    """`os.pread` on its own descriptor, closed when the source is no longer used."""

    def __init__(self, path: str) -> None:
        self.path, self._fd = path, -1
        try:
            check_regular(path)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:  # includes MissingFile
            raise MissingFile("no such file", file=path) from None
        except OSError as e:
            raise UserError(f"the file cannot be opened: {e.strerror}", file=path) from e
        self.size = os.fstat(self._fd).st_size

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            return [os.pread(self._fd, size, offset) for offset, size in ranges]
        except OSError as e:
            raise UnreadableUnit("io", self.path, str(e)) from e

    def open_buffered(self) -> BinaryIO:
        return open(self.path, "rb")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class RemoteFile:
    """Range requests through fsspec; all ranges of one call at once if the file system supports it.

    A request that fails temporarily is tried again, then UnreachableUnit. Errors are not chained to the file system's
    exceptions, whose text may contain a signed URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._file_system()
        try:
            self.size = int(retry_request(url, lambda: self._fs.info(self._path)["size"]))
        except FileNotFoundError:
            raise MissingFile("no such object", file=public(url)) from None
        except UnreachableUnit:
            raise
        except Exception as e:  # every file system raises its own kinds
            raise UserError(f"the object cannot be opened: {type(e).__name__}", file=public(url)) from None

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._pid != os.getpid():  # an asynchronous file system does not work in a forked child
            self._file_system()
        try:
            return retry_request(self.url, lambda: self._ranges(ranges))
        except UnreadableUnit:  # UnreachableUnit is one
            raise
        except FileNotFoundError:
            raise UnreadableUnit("missing", public(self.url), "the object no longer exists") from None
        except TimeoutError as e:
            raise UnreadableUnit("timeout", public(self.url), type(e).__name__) from None
        except Exception as e:
            raise UnreadableUnit("io", public(self.url), f"{type(e).__name__} in a range request") from None

    def open_buffered(self) -> BinaryIO:
        how = {"block_size": PARSE_BLOCK, "cache_type": "blockcache"}
        opened = retry_request(self.url, lambda: self._fs.open(self._path, "rb", **how))
        return cast(BinaryIO, _RemoteBuffer(self.url, opened))

    def close(self) -> None:
        """Does nothing: nothing is open between requests."""

    def _ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, ends = [o for o, _ in ranges], [o + n for o, n in ranges]
        if len(ranges) == 1:
            found = [self._fs.cat_file(self._path, start=starts[0], end=ends[0])]
        else:
            found = self._fs.cat_ranges([self._path] * len(ranges), starts, ends, on_error="raise")
        for data, start, end in zip(found, starts, ends, strict=True):
            if len(data) != max(0, min(end, self.size) - start):
                self._check_unchanged()
                raise OSError(f"size mismatch: {len(data)} bytes of {end - start} at {start}")
        return cast("list[bytes]", found)

    def _check_unchanged(self) -> None:
        """UnreadableUnit if the object has another size than when it was opened: no further try would help."""
        self._fs.invalidate_cache()
        if (now := int(self._fs.info(self._path)["size"])) != self.size:
            detail = f"the object has changed: {now:,} bytes, {self.size:,} when it was opened"
            raise UnreadableUnit("io", public(self.url), detail)

    def _file_system(self) -> None:
        self._fs, self._path = _find(self.url)
        self._pid = os.getpid()


def _find(url: str) -> tuple[Any, str]:
    try:
        return find_file_system(url)
    except (ValueError, ImportError) as e:
        scheme = url.split("://")[0]
        raise UserError(f"no file system for {scheme}://", file=public(url), expected=str(e)) from e


class _RemoteBuffer:
    """An open remote file whose reads are tried again by `retry_request`.

    An UnreachableUnit is raised again at the end of its `with` block: parsers take any error of a read for a damaged
    file.
    """

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file, self._error = url, file, cast("UnreachableUnit | None", None)

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, self._retry(lambda: self._file.read(size)))

    def readinto(self, into: Any) -> int:
        return cast(int, self._retry(lambda: self._file.readinto(into)))

    def _retry(self, request: Callable[[], T]) -> T:
        try:
            return retry_request(self._url, request)
        except UnreachableUnit as e:
            self._error = e
            raise

    def __enter__(self) -> _RemoteBuffer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._error is not None:
            raise self._error from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
