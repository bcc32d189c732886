"""What earlier starts of a transfer have done: rows next to the outputs, stored in parts while the job runs.

A killed job loses at most the rows of one part, whose files it looks at again. One writer. Not here: what a row says
(oct.transfer.expand, oct.transfer.prepare).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pathray.errors import UserError
from pathray.run.fence import Superseded
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Ledger:
    """The rows in `folder` (a path or URL), by their column `key`; each part holds up to `part_rows` rows."""

    def __init__(self, folder: str, schema: pa.Schema, key: str, part_rows: int = 256) -> None:
        self.store, self.schema, self.key, self.part_rows = Storage.of(folder), schema, key, part_rows
        self._names = self.store.list()
        self._waiting: list[Row] = []

    def read(self) -> dict[str, Row]:
        """The newest row of each key. A damaged part, or one of another layout, is left out and said so."""
        found: dict[str, Row] = {}
        for name in self._names:
            path = self.store.join(name)
            try:
                table = of_bytes(self.store.read_bytes(name), path, "record of a transfer")
                if table.column_names != self.schema.names:
                    raise UserError("not a record of this transfer", file=path, found=table.column_names)
            except UserError as e:
                log.warning("%s; its files are looked at again", e)
                continue
            found |= {row[self.key]: row for row in table.to_pylist()}
        return found

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
        """Pass the rows on, and store them as they come; what waits is stored at the end, also at an error. Not after a
        Superseded: the part's name may be one of the new owner's by now."""
        try:
            for row in rows:
                self._waiting.append({name: row.get(name) for name in self.schema.names})
                if len(self._waiting) >= self.part_rows:
                    self.flush()
                yield dict(row)
        except Superseded:
            self._waiting = []
            raise
        finally:
            self.flush()

    def flush(self) -> None:
        """Store the rows that wait as a part."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []

    def compact(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Make these rows the only ones: one part, in place of all."""
        before = list(self._names)
        self._write([{name: row.get(name) for name in self.schema.names} for row in rows])
        for name in before:
            self.store.remove(name)
        self._names = self._names[len(before) :]

    def _write(self, rows: list[Row]) -> None:
        number = 1 + max((int(name[5:13]) for name in self._names if name[5:13].isdecimal()), default=0)
        name = f"part-{number:08d}.parquet"
        self.store.write_bytes(name, to_bytes(pa.Table.from_pylist(rows, schema=self.schema)))
        self._names.append(name)
