"""The content of one ZIP member as a stream of pieces, checked against the directory as it passes.

Bytes are fetched by ranged reads of bounded size: neither archive nor member is ever in memory as a whole. The stream
ends with an error unless size and CRC are the directory's, so that a writer knows before it publishes. Not here: the
directory (oct.transfer.archive), methods (oct.transfer.inflate).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from oct.transfer.archive import Member
from oct.transfer.inflate import STORED, Corrupt, Unsupported, find_inflater
from pathray.errors import UnreadableUnit
from pathray.urls import public
from pathray.wsi.backends.source import ByteSource

READ_BYTES = 8 << 20  # of a request
_HEADER = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"


def name_of(member: Member) -> str:
    """The member's name for messages."""
    return f"{public(member.archive)}!{ascii(member.name)[1:-1] if not member.name.isprintable() else member.name}"


def check_member(member: Member) -> None:
    """UnreadableUnit for what the directory alone shows: `encrypted`, `method`, `size`."""
    if member.is_encrypted:
        raise UnreadableUnit("encrypted", name_of(member))
    try:
        find_inflater(member.method)
    except Unsupported as e:
        raise UnreadableUnit("method", name_of(member), str(e)) from e
    if member.method == STORED and member.size != member.compressed:
        raise UnreadableUnit("size", name_of(member), f"{member.size} bytes stored in {member.compressed}")


def stream_member(source: ByteSource, member: Member) -> Iterator[bytes]:
    """The member's content in pieces. `source` is its archive.

    UnreadableUnit: `encrypted`, `method`, `header`, `truncated`, `deflate`, and, before the last piece is passed on,
    `size` or `crc`. UnreachableUnit.
    """
    check_member(member)
    pieces = find_inflater(member.method)(_compressed(source, member))
    held, crc, size = b"", 0, 0
    try:
        for piece in pieces:
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > member.size:
                raise UnreadableUnit("size", name_of(member), f"more than the {member.size} bytes of the directory")
            if piece:
                if held:
                    yield held
                held = piece
    except Corrupt as e:
        raise UnreadableUnit("deflate", name_of(member), str(e)) from e
    if size != member.size:
        raise UnreadableUnit("size", name_of(member), f"{size} bytes, the directory says {member.size}")
    if crc != member.crc:
        raise UnreadableUnit("crc", name_of(member), f"{crc:08x}, the directory says {member.crc:08x}")
    yield held


def _compressed(source: ByteSource, member: Member) -> Iterator[bytes]:
    """The member's data as they are stored, in pieces of `READ_BYTES`; most members need one request more."""
    head = source.read_many([(member.offset, _HEADER.size)])[0]
    if len(head) < _HEADER.size or not head.startswith(_SIGNATURE):
        raise UnreadableUnit("header", name_of(member), f"no member at byte {member.offset} of the archive")
    *_, name_length, extra_length = _HEADER.unpack(head)
    begin = member.offset + _HEADER.size + name_length + extra_length
    for at in range(begin, begin + member.compressed, READ_BYTES):
        wanted = min(READ_BYTES, begin + member.compressed - at)
        data = source.read_many([(at, wanted)])[0]
        if len(data) < wanted:
            raise UnreadableUnit("truncated", name_of(member), f"the archive ends at byte {at + len(data)}")
        yield data
