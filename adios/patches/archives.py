"""Zip archives as a file system of patches: the directory of one archive, and one member by one ranged read.

`zipfile` reads the directory (zip64 included). A member is read by its offset, which `zipfile` cannot do: it would read
the directory again in every process and request header and data separately. Nothing is ever unpacked to disk.
A fault of an archive or a member is an UnreadableUnit with one of these reasons:

    missing, io, timeout     the storage does not have it, or cannot read it now
    archive                  the archive has no readable directory
    name, duplicate          the name of a member leads out of the archive, or occurs twice
    encrypted, method        it is encrypted, or neither stored nor compressed by deflate
    bomb                     it is, or would become, larger than any patch
    truncated, header        the data end too early, or there is no member at the offset
    deflate, size, crc       the data cannot be decompressed, or do not match the directory
"""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit, UserError
from pathray.urls import public
from pathray.wsi.backends.source import ByteSource, open_source

STORED, DEFLATED = 0, 8
METHODS = (STORED, DEFLATED)
ENCRYPTED = 1  # bit of a member's flags
SLACK = 512  # bytes to read for a member's name and extra field, usually some tens; longer ones cost a second read
_HEADER = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"


@dataclass(frozen=True)
class Member:
    """An entry of an archive's directory. `offset` is that of its local header."""

    name: str
    offset: int
    compressed: int
    size: int
    crc: int
    method: int
    flags: int = 0


class Fault(NamedTuple):
    """A fault of a member."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Directory:
    """The members of an archive in the order of its directory, without folders; `end` is where the directory begins:
    all data must end before it."""

    members: tuple[Member, ...]
    end: int


def read_directory(path: str) -> Directory:
    """The directory of the archive at `path` (or URL). UnreadableUnit: missing, io, archive; UnreachableUnit."""
    try:
        source = open_source(path)
    except MissingFile as e:
        raise UnreadableUnit("missing", public(path)) from e
    except UserError as e:
        raise UnreadableUnit("io", public(path), str(e)) from e
    try:
        with source.open_buffered() as file, zipfile.ZipFile(file) as archive:
            members = tuple(_member(info) for info in archive.infolist() if not info.is_dir())
            return Directory(members, archive.start_dir)
    except UnreachableUnit:
        raise
    except (zipfile.BadZipFile, struct.error, ValueError, IndexError, NotImplementedError, EOFError) as e:
        raise UnreadableUnit("archive", public(path), str(e)) from None
    except Exception as e:  # every file system has errors of its own; a directory at a negative offset is EINVAL
        reason = "archive" if getattr(e, "errno", None) == errno.EINVAL else "io"
        raise UnreadableUnit(reason, public(path), type(e).__name__) from None
    finally:
        source.close()


def _member(info: zipfile.ZipInfo) -> Member:
    sizes = (info.compress_size, info.file_size)
    return Member(info.orig_filename, info.header_offset, *sizes, info.CRC, info.compress_type, info.flag_bits)


def fault_of(member: Member, end: int, limit: int) -> Fault | None:
    """A member's fault as far as the directory shows it. `limit` is the most bytes that a patch may have."""
    if member.flags & ENCRYPTED:
        return Fault("encrypted")
    if member.method not in METHODS:
        return Fault("method", f"method {member.method}, expected stored (0) or deflate (8)")
    if max(member.size, member.compressed) > limit:
        return Fault("bomb", f"{member.compressed} bytes for {member.size}, expected at most {limit}")
    if member.method == STORED and member.size != member.compressed:
        return Fault("size", f"{member.size} bytes stored in {member.compressed}")
    if member.offset < 0 or member.offset + _HEADER.size + member.compressed > end:
        return Fault("truncated", f"data from {member.offset} exceed {end}, where the directory begins")
    return None


def member_limit(patch_px: int) -> int:
    """The most bytes that the file of a patch of `patch_px`² pixels may have: more than any such image needs."""
    return 8 * patch_px * patch_px + (1 << 18)


def unsafe(name: str) -> bool:
    """Whether a name would leave the folder that an archive is unpacked to."""
    return bool(re.search(r"[\\\0]|^/|^[A-Za-z]:|(^|/)\.\.(/|$)", name))


@dataclass(frozen=True)
class Content:
    """A member's bytes, and its name in a report."""

    content: bytes | memoryview
    where: str


def read_member(
    source: ByteSource, path: str, offset: int, compressed: int, size: int, crc: int, limit: int
) -> Content:
    """The `size` bytes of the member whose local header is at `offset`, by one ranged read.

    Raises UnreadableUnit, naming archive and member, unless they match `size` and `crc`. Never holds more than about
    twice `limit` bytes.
    """
    where = f"{public(path)}@{offset}"
    if max(size, compressed) > limit:
        raise UnreadableUnit("bomb", where, f"{compressed} bytes for {size}, expected at most {limit}")
    data = memoryview(source.read_many([(offset, _HEADER.size + SLACK + compressed)])[0])
    if len(data) < _HEADER.size:
        raise UnreadableUnit("truncated", where, "the archive ends before this member")
    signature, _, flags, method, *_, name_length, extra_length = _HEADER.unpack_from(data)
    if signature != _SIGNATURE:
        raise UnreadableUnit("header", where, f"{signature!r} instead of a member's header")
    where = f"{public(path)}!{_readable_name(bytes(data[_HEADER.size : _HEADER.size + name_length]))}"
    start = _HEADER.size + name_length + extra_length
    body = data[start : start + compressed]
    if start > _HEADER.size + SLACK:
        body = memoryview(source.read_many([(offset + start, compressed)])[0])
    if len(body) < compressed:
        raise UnreadableUnit("truncated", where, f"only {len(body)} of {compressed} bytes")
    if flags & ENCRYPTED:
        raise UnreadableUnit("encrypted", where)
    if method not in METHODS:
        raise UnreadableUnit("method", where, f"method {method}, expected stored (0) or deflate (8)")
    content = body if method == STORED else _inflate(body, size, where)
    if len(content) != size:
        raise UnreadableUnit("size", where, f"{len(content)} bytes, the directory says {size}")
    if (found := zlib.crc32(content)) != crc:
        raise UnreadableUnit("crc", where, f"{found:08x}, the directory says {crc:08x}")
    return Content(content, where)


def _inflate(body: memoryview, size: int, where: str) -> bytes:
    """Decompress `body`, to at most one byte more than `size`."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(body, size + 1)
    except zlib.error as e:
        raise UnreadableUnit("deflate", where, str(e)) from e
    if len(content) > size:
        raise UnreadableUnit("bomb", where, f"more than the {size} bytes that the directory says")
    if not decompressor.eof:
        raise UnreadableUnit("truncated", where, f"compressed data end after {len(content)} of {size} bytes")
    return content


def _readable_name(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


class SourceCache:
    """The archives used last, open for positioned reads: at most `max_open`. Thread-safe; empty after a fork or
    unpickling. An evicted archive is closed when its last read ends."""

    def __init__(self, max_open: int = 64) -> None:
        assert max_open > 0, max_open
        self.max_open = max_open
        self._clear()

    def _clear(self) -> None:
        self._pid, self._lock, self._open = os.getpid(), threading.Lock(), OrderedDict[str, ByteSource]()

    def get(self, path: str) -> ByteSource:
        """The archive at `path`. Raises what `open_source` raises. Opening does not block other threads."""
        if self._pid != os.getpid():
            self._clear()
        with self._lock:
            source = self._open.get(path)
            if source is not None:
                self._open.move_to_end(path)
                return source
        opened = open_source(path)
        with self._lock:
            source = self._open.setdefault(path, opened)
            while len(self._open) > self.max_open:
                self._open.popitem(last=False)
        return source

    def __len__(self) -> int:
        return len(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceCache, (self.max_open,)
