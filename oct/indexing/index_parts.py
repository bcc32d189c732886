"""Rows of an unfinished index, in parts next to it (`INDEX_parts/`), so that a killed job reads no file twice.

Each part is an index of some rows. Not here: what is in a row (oct.indexing.index), the index itself
(oct.indexing.index_file).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from oct.indexing.index import Row
from oct.indexing.index_file import make_index, read_index, write_index
from pathray.errors import UserError
from pathray.store.storage import Storage

log = logging.getLogger(__name__)

PART_ROWS = 512  # what a kill may lose


class IndexParts:
    """The parts of the index at `output`, of files below `root`. One writer."""

    def __init__(self, output: str, root: str) -> None:
        self.root = root
        self.store = Storage.of(f"{output.removesuffix('.parquet')}_parts")
        self.names = self.store.list()
        self._waiting: list[Row] = []

    def rows(self) -> list[Row]:
        """The rows of all parts of this root, the oldest first. A damaged part is left out, and its files are read
        again."""
        found: list[Row] = []
        for name in self.names:
            try:
                part = read_index(self.store.join(name))
            except UserError as e:
                log.warning("%s; its files are read again", e)
                continue
            found += part.table.to_pylist() if part.root == self.root else []
        return found

    def keep(self, rows: Iterable[Row], known: Iterable[Row]) -> Iterator[Row]:
        """Pass the rows on, and store those that are not `known` as they come; what waits is stored at the end, also at
        an error."""
        before = {(row["path"], row["state"], row["listed"]) for row in known}
        try:
            for row in rows:
                if (row["path"], row.get("state"), row["listed"]) not in before:
                    self._waiting.append(row)
                    if len(self._waiting) >= PART_ROWS:
                        self.flush()
                yield row
        finally:
            self.flush()

    def flush(self) -> None:
        """Store the rows that wait as a part."""
        if not self._waiting:
            return
        number = 1 + max((int(name[5:13]) for name in self.names if name[5:13].isdecimal()), default=0)
        name = f"part-{number:08d}.parquet"
        write_index(make_index(self.store.join(name), self.root, self._waiting))
        self.names.append(name)
        self._waiting = []

    def remove(self) -> None:
        """Remove all parts: the index is written."""
        self.store.remove("")
        self.names = []
