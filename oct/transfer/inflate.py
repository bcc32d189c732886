"""The compression methods of ZIP members as streams: stored, Deflate, and Deflate64 where a library for it is there.

Windows writes Deflate64 for members above 2 GB. Not here: which bytes of an archive a member's are
(oct.transfer.archive), checks of size and CRC (oct.transfer.member).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator

STORED, DEFLATE, DEFLATE64 = 0, 8, 9
NAMES = {1: "Shrink", 6: "Implode", 12: "BZIP2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
PIECE = 1 << 18  # bytes of compressed data per call; one call gives at most about a thousand times as many
MOST_OUT = 1 << 22  # bytes per call of zlib

Inflate = Callable[[Iterable[bytes]], Iterator[bytes]]


class Unsupported(Exception):
    """A method that cannot be inflated; the message names it."""


class Corrupt(Exception):
    """Compressed data that do not decode, or end early."""


def find_inflater(method: int) -> Inflate:
    """A function from pieces of compressed data to pieces of content. Unsupported, naming the method, for others."""
    if method == STORED:
        return iter
    if method == DEFLATE:
        return _inflate
    if method == DEFLATE64:
        try:
            import inflate64
        except ImportError:
            raise Unsupported("Deflate64 (9): needs the package inflate64, pip install 'pathray[oct]'") from None
        return lambda pieces: _inflate64(inflate64.Inflater(), pieces)
    raise Unsupported(f"{NAMES.get(method, 'unknown')} ({method}): expected stored (0), Deflate (8) or Deflate64 (9)")


def _inflate(pieces: Iterable[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in pieces:
        while piece and not decoder.eof:
            try:
                content = decoder.decompress(piece, MOST_OUT)
            except zlib.error as e:
                raise Corrupt(str(e)) from e
            piece = decoder.unconsumed_tail
            yield content
    while not decoder.eof:  # what the decoder still holds
        content = decoder.decompress(b"", MOST_OUT)
        if not content:
            raise Corrupt("the compressed data end early")
        yield content


def _inflate64(decoder: object, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), PIECE):
            if decoder.eof:  # type: ignore[attr-defined]
                return
            try:
                yield bytes(decoder.inflate(piece[at : at + PIECE]))  # type: ignore[attr-defined]
            except Exception as e:  # of its own kinds
                raise Corrupt(f"{type(e).__name__}: {e}") from e
    if not decoder.eof:  # type: ignore[attr-defined]
        raise Corrupt("the compressed data end early")
