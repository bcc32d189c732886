"""metrics.jsonl is the truth about a run's figures: one strict-JSON row per log tick, with a checksum of itself.

Rows carry `images_seen`. On resume the log is cut back to the checkpoint's position, so a crash leaves neither doubled
nor orphaned rows. NaN and Inf become null and are named in `nonfinite`. Not here: MLflow, which is fed from the file
(pathray.run.tracking.mlflow).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pathray.errors import MissingFile
from pathray.store.storage import Storage
from pathray.store.storage_errors import StorageError, storage_error

log = logging.getLogger(__name__)

NONFINITE, TIME, CHECK = "nonfinite", "time", "check"
CHECKED = re.compile(rb',"check":"([0-9a-f]{8})"}\n\Z')
REMOTE_FLUSH_S = 10.0
MARKER = "images_seen"


class MetricsLog:
    """Appends rows to a metrics.jsonl by path or URL; one writer.

    A local row is on disk when `append` returns. Object stores cannot append: there the whole file is written anew at
    most every `flush_every_s` seconds and on `flush`, which belongs before a checkpoint, and on `close`.
    """

    def __init__(self, path: str, *, flush_every_s: float = REMOTE_FLUSH_S, retries: bool = True) -> None:
        folder, _, self._name = path.rpartition("/")
        store = Storage.of(folder or ".")
        self._store = store if retries else store.without_retries()
        self._flush_every_s, self._flushed = flush_every_s, 0.0
        self._remote: bytes | None = None
        self._dirty = self._mended = False

    @property
    def local(self) -> bool:
        return self._store.local

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row of numbers, words and None; `time` (epoch seconds) is added. `images_seen` is required."""
        self.append_line(line_of(row))
        if self.due():
            self.flush()

    def append_line(self, line: bytes) -> None:
        """Add a row as `line_of` gives it: on disk when this returns, in memory until `flush` for an object store.

        After a StorageError the same line may be given again: it is there once.
        """
        if not self._store.local:
            self._remote, self._dirty = self._content() + line, True
            return
        path = self._store.path(self._name)
        try:
            if self._mend().endswith(line):
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as f:
                f.write(line)
        except OSError as e:
            self._mended = False  # a part of the line, or all of it, may be there
            raise e if isinstance(e, StorageError) else storage_error(e, path, writing=True) from e

    def due(self) -> bool:
        """Whether rows wait in memory, and the last upload is long enough ago for another."""
        return self._dirty and time.monotonic() - self._flushed >= self._flush_every_s

    def cut_back(self, images_seen: int) -> int:
        """Drop the rows beyond `images_seen` and a half-written last one, atomically; returns how many were dropped."""
        content = self._content()
        lines = content.splitlines(keepends=True)
        kept = [line for line in lines if (row := _parse(line)) is not None and row["images_seen"] <= images_seen]
        if len(kept) < len(lines):
            self._store.write_bytes(self._name, b"".join(kept))
        self._remote, self._dirty, self._mended = b"".join(kept), False, True
        return len(lines) - len(kept)

    def flush(self) -> None:
        if self._dirty and self._remote is not None:
            self._store.write_bytes(self._name, self._remote)
            self._dirty = False
        self._flushed = time.monotonic()

    close = flush

    def read(self) -> list[dict[str, Any]]:
        """The rows in order, NaN where `nonfinite` says so; none where there is no file. A half-written last one is
        left out."""
        return rows_of(self._content())

    def _mend(self) -> bytes:
        """A predecessor may have died inside a row: new rows must not be glued to its rest. Gives the whole rows that
        are there, when it has looked."""
        if self._mended:
            return b""
        content = self._content()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._store.write_bytes(self._name, whole)
        self._mended = True
        return whole

    def _content(self) -> bytes:
        if not self._store.local and self._remote is not None:
            return self._remote
        try:
            return self._store.read_bytes(self._name)
        except MissingFile:
            return b""


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """The whole rows in the bytes of a metrics.jsonl."""
    return [row for line in content.splitlines(keepends=True) if (row := _parse(line)) is not None]


def line_of(row: Mapping[str, Any]) -> bytes:
    """The line of a row in metrics.jsonl: with the time it has, or now, and a checksum."""
    assert isinstance(row.get("images_seen"), int), row
    return _with_checksum(to_line({**row, TIME: round(time.time(), 3)}))


def to_line(row: Mapping[str, Any]) -> bytes:
    """One row as strict JSON with a newline."""
    assert NONFINITE not in row, row
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    broken = sorted(key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value))
    plain |= dict.fromkeys(broken)
    if broken:
        plain[NONFINITE] = broken
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row: Any = json.loads(line)
    except ValueError:  # also bytes that are no text
        row = None
    if not isinstance(row, dict) or not isinstance(row.get(MARKER), int) or not _holds(line):
        log.warning("a row of the metrics is damaged and left out: %r", line[:80])
        return None
    row.pop(CHECK, None)
    for key in row.pop(NONFINITE, ()):
        row[key] = math.nan
    return row


def _with_checksum(line: bytes) -> bytes:
    """The line of a row with a checksum of itself as its last entry: a flipped digit is not another value."""
    return line[:-2] + b',"%s":"%08x"}\n' % (CHECK.encode(), zlib.crc32(line))


def _holds(line: bytes) -> bool:
    """Whether the line has the checksum that it says; True for one that says none, as older versions wrote."""
    said = CHECKED.search(line)
    return said is None or zlib.crc32(line[: said.start()] + b"}\n") == int(said[1], 16)
