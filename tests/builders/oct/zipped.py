"""ZIPs of OCT files with the traits that real ones have: methods, ZIP64, Deflate64."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DEFLATE64 = 9


def content_of(number: int, size: int = 3000) -> bytes:
    """Bytes that compress to about half."""
    return np.random.default_rng(number).integers(0, 16, size, np.uint8).tobytes()


def build_zip(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, zip64: bool = False) -> bytes:
    """A ZIP of (name, content). zip64: every member has the extra field of large ones."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as f:
                f.write(content)
    return stream.getvalue()


def write_zip(path: Path, members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return str(path)


def build_deflate64(name: str, content: bytes) -> bytes:
    """A ZIP with one member compressed by Deflate64, as Windows writes it."""
    import inflate64

    deflater = inflate64.Deflater()
    packed = deflater.deflate(content) + deflater.flush()
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, packed)
    data = bytearray(stored.getvalue())
    crc, size = zlib.crc32(content).to_bytes(4, "little"), len(content).to_bytes(4, "little")
    for begin, at in ((data.index(b"PK\x03\x04"), 8), (data.index(b"PK\x01\x02"), 10)):
        data[begin + at : begin + at + 2] = DEFLATE64.to_bytes(2, "little")
        data[begin + at + 6 : begin + at + 10] = crc
        data[begin + at + 14 : begin + at + 18] = size
    return bytes(data)


def triton(person: int, eye: str = "r") -> str:
    """The name of a member as AI-READI has it."""
    return f"retinal_oct/structural_oct/topcon_triton/{person}/{person}_triton_macula_{eye}.dcm"
