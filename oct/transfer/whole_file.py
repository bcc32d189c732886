"""Writes a file from a stream of pieces: it appears whole or not at all, in a folder or a bucket.

A bucket's file object becomes an object when it is closed, also by a `with` block that an error leaves or by the
garbage collector; one that failed is therefore abandoned before. Not here: whole small files
(pathray.store.storage).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
import zlib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pathray.errors import MissingFile, explain
from pathray.store.atomic import replacing_file
from pathray.store.storage import Storage, StorageError, file_state
from pathray.store.storage_errors import may_pass, storage_error
from pathray.wsi.backends.source import open_source, retry_request

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20  # of an upload's parts, and of a check's reads


def write_pieces(path: str, pieces: Iterable[bytes]) -> str:
    """Write the file at a path or URL and return its state (pathray.store.storage.file_state).

    What `pieces` raises is raised as it is, and nothing is written. StorageError if the storage fails, or stores
    something else than it was sent; UnreachableUnit if the state cannot be asked for.
    """
    folder, _, name = path.rpartition("/")
    store = Storage.of(folder or "/")
    if store.local:
        _write_local(Path(store.path(name)), pieces)
        return file_state(path)
    _write_object(store, name, pieces)
    return retry_request(path, lambda: file_state(path))


def _write_local(target: Path, pieces: Iterable[bytes]) -> None:
    iterator, more = iter(pieces), True
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(target, target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")) as partial:
            with open(partial, "wb") as f:
                while more:
                    piece = _next(iterator)
                    more = piece is not None
                    f.write(piece or b"")
    except _OfPieces as e:
        raise e.error from None
    except OSError as e:
        raise storage_error(e, str(target), writing=True) from e


def _write_object(store: Storage, name: str, pieces: Iterable[bytes]) -> None:
    iterator, digest = iter(pieces), hashlib.md5(usedforsecurity=False)
    size, file = 0, store.fs.open(store.path(name), "wb", block_size=BLOCK_BYTES)
    try:
        while (piece := _next(iterator)) is not None:
            digest.update(piece)
            size += file.write(piece)
    except BaseException as e:
        _abandon(file)
        if isinstance(e, _OfPieces):
            raise e.error from None
        raise _as_storage_error(e, store.join(name)) from e
    try:
        file.close()
        info = store.fs.info(store.path(name))
    except Exception as e:  # every file system raises its own kinds
        raise _as_storage_error(e, store.join(name)) from e
    try:
        _check_stored(info, size, digest.digest(), store.join(name))
    except StorageError:
        store.remove(name)  # what is not what was sent must not be taken for it
        raise


class _OfPieces(Exception):
    """An error of the stream, not of the storage."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _next(pieces: Any) -> bytes | None:
    try:
        piece: bytes | None = next(pieces, None)
    except Exception as e:
        raise _OfPieces(e) from e
    return piece


def _abandon(file: Any) -> None:
    """Drop what was written, and keep the file from being closed as if it were whole."""
    try:
        if discard := getattr(file, "discard", None):
            discard()
    except Exception as e:
        log.warning("an unfinished upload could not be removed: %s", explain(e, OSError))
    finally:
        with contextlib.suppress(AttributeError):  # of file objects that have no such state
            file.closed = True


def _as_storage_error(e: BaseException, path: str) -> BaseException:
    if not isinstance(e, Exception) or isinstance(e, AssertionError):
        return e
    error = storage_error(e, path, writing=True)
    error.passing = may_pass(e)
    return error


def _check_stored(info: dict[str, Any], size: int, md5: bytes, path: str) -> None:
    """StorageError, which a further try may mend, unless the stored object is what was sent."""
    expected, found = {"size": size}, {"size": int(info.get("size") or 0)}
    if info.get("md5Hash"):
        expected["md5"], found["md5"] = b64encode(md5).decode(), info["md5Hash"]  # type: ignore[assignment]
    if found != expected:
        raise StorageError.temporary(f"the storage holds {found} instead of {expected}", file=path)


def check_content(path: str, size: int, crc: int) -> str:
    """Why the file at a path or URL is not one of this size and CRC-32; "" if it is. It is read in blocks.

    Raises what reading raises.
    """
    try:
        source = open_source(path)
    except MissingFile:
        return "missing"
    try:
        if source.size != size:
            return f"{source.size} bytes, expected {size}"
        found = 0
        for at in range(0, size, BLOCK_BYTES):
            found = zlib.crc32(source.read_many([(at, min(BLOCK_BYTES, size - at))])[0], found)
    finally:
        source.close()
    return "" if found == crc else f"crc {found:08x}, expected {crc:08x}"
