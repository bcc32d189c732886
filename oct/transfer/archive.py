"""The directory of a ZIP on any storage: its members and where their data are, from the archive's end alone.

`zipfile` reads the directory (ZIP64 included). Not here: content (oct.transfer.member), where members go
(oct.transfer.layout).
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass

from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit, UserError
from pathray.store.storage import Storage
from pathray.urls import public
from pathray.wsi.backends.source import open_source

ENCRYPTED = 1  # bit of a member's flags
SUFFIX = ".zip"


@dataclass(frozen=True)
class Member:
    """A file in an archive: its entry in the directory. `offset` is that of its local header; sizes are in bytes."""

    archive: str
    name: str
    offset: int
    compressed: int
    size: int
    crc: int
    method: int
    flags: int = 0

    @property
    def is_encrypted(self) -> bool:
        return bool(self.flags & ENCRYPTED)


def list_archives(place: str) -> list[str]:
    """The ZIPs below a folder or URL, sorted; or the one ZIP that `place` is. MissingFile if there is none such."""
    store = Storage.of(place)
    if place.lower().endswith(SUFFIX):
        if not store.exists():
            raise MissingFile("no such archive", file=public(place), key="archives")
        return [store.url]
    names = sorted(name for name in store.files() if name.lower().endswith(SUFFIX))
    if not names:
        raise MissingFile("no archives here", file=public(place), key="archives", expected="a ZIP, or a folder of ZIPs")
    return [store.join(name) for name in names]


def read_directory(path: str) -> list[Member]:
    """The members of the ZIP at a path or URL in its directory's order, without folders.

    UnreadableUnit: `missing`, `io`, or `archive` if it has no readable directory. UnreachableUnit.
    """
    try:
        source = open_source(path)
    except MissingFile as e:
        raise UnreadableUnit("missing", public(path), e.message) from e
    except UserError as e:
        raise UnreadableUnit("io", public(path), e.message) from e
    try:
        with source.open_buffered() as file, zipfile.ZipFile(file) as archive:
            return [_member(path, info) for info in archive.infolist() if not info.is_dir()]
    except UnreachableUnit:
        raise
    except (zipfile.BadZipFile, struct.error, ValueError, IndexError, NotImplementedError, EOFError, OSError) as e:
        raise UnreadableUnit("archive", public(path), f"{type(e).__name__}: {e}") from e
    finally:
        source.close()


def _member(path: str, info: zipfile.ZipInfo) -> Member:
    sizes = (info.compress_size, info.file_size)
    return Member(path, info.orig_filename, info.header_offset, *sizes, info.CRC, info.compress_type, info.flag_bits)
