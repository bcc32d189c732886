"""Local copies of DICOM files on slow or remote storage: `data.cache_dir`, or DATA_CACHE_DIR.

The folder may be shared by all processes of a machine and by later runs. A copy is made whole or not at all, and the
least recently used ones make room. Not here: the cache itself (pathray.store.cache), reading without one
(pathray.wsi.backends.source).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pathray.errors import UserError
from pathray.store.cache import fetch_cached
from pathray.wsi.backends.source import read_source

CACHE_ENV = "DATA_CACHE_DIR"


@dataclass(frozen=True)
class VolumeCache:
    """`folder` of copies, of at most `limit` bytes together; no folder, or no bytes: every read goes to the storage."""

    folder: str | None = None
    limit: int = 50 * 10**9

    @classmethod
    def of(cls, folder: str | None, gigabytes: float) -> VolumeCache:
        """The cache in `folder`, or where DATA_CACHE_DIR says. UserError if the folder cannot be made."""
        given = folder or os.environ.get(CACHE_ENV) or None
        if given is not None:
            try:
                Path(given).mkdir(parents=True, exist_ok=True)
            except OSError as e:
                key = "data.cache_dir" if folder else CACHE_ENV
                raise UserError("the folder of the cache cannot be made", key=key, found=given, expected=str(e)) from e
        return cls(given if gigabytes else None, int(gigabytes * 10**9))

    def read(self, path: str, state: str) -> bytes:
        """The bytes of a file (path or URL), from its copy where there is one. `state` changes when the file does.

        Raises what `read_source` raises. A copy that another process has just removed, or for which there is no room on
        the disk, is no error: the storage is read.
        """
        if self.folder is None:
            return read_source(path)
        name = hashlib.sha256(f"{path}\n{state}".encode()).hexdigest()[:24] + "-volume"
        fetched: list[bytes] = []

        def fetch(partial: Path) -> None:
            fetched.append(read_source(path))
            partial.write_bytes(fetched[0])

        with contextlib.suppress(OSError):
            copy = fetch_cached(name, fetch, _size_of(state), Path(self.folder), self.limit)
            data = fetched[0] if fetched else copy.read_bytes()
            if len(data) == (_size_of(state) or len(data)):
                return data
            copy.unlink()  # damaged, such as by a machine that stopped
        return fetched[0] if fetched else read_source(path)


def _size_of(state: str) -> int:
    """The size of a file that its state begins with; 0 where it does not say it."""
    size = state.partition(":")[0]
    return int(size) if size.isdigit() else 0
