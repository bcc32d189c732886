"""log.txt of a run: what its driver says, and a line per row of metrics.jsonl, written while the run is in progress.

A resumed run appends. Object stores cannot append: there the file is written anew every half minute and at the end.
Not here: figures over time, whose truth is metrics.jsonl (pathray.store.metrics_log).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pathray.errors import MissingFile
from pathray.run.layout import LOG, METRICS
from pathray.store.metrics_log import TIME, rows_of
from pathray.store.outages import through_outages
from pathray.store.storage import Storage
from pathray.urls import public_text

LOCAL_EVERY_S, REMOTE_EVERY_S = 1.0, 30.0
FORMAT, STAMP = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"


@contextmanager
def run_log(store: Storage) -> Iterator[None]:
    """Keeps log.txt in the run's folder while the block runs; an error that ends it is told there."""
    writer = _Writer(store)
    thread = threading.current_thread()
    if thread is not threading.main_thread():  # of several runs of this process: others' words are not its own
        writer.addFilter(lambda record: record.thread == thread.ident)
    root = logging.getLogger()
    root.addHandler(writer)
    try:
        yield
    except BaseException as e:
        writer.note(f"ended with {type(e).__name__}: {e}")
        raise
    finally:
        root.removeHandler(writer)
        writer.close()


def line_of(row: Mapping[str, Any]) -> str:
    """
    >>> line_of({"images_seen": 2048, "step": 128, "time": 0.0, "loss": 0.51234567, "val/spearman": 0.25})
    '2,048 images, step 128: loss 0.51235, val/spearman 0.25'
    """
    figures = [
        f"{key} {value:.5g}"
        for key, value in row.items()
        if isinstance(value, int | float) and key not in ("images_seen", "step", TIME)
    ]
    step = f", step {row['step']}" if "step" in row else ""
    return f"{row['images_seen']:,} images{step}: {', '.join(figures)}"


def _write_order(row: Mapping[str, Any]) -> tuple[float, int]:
    """Rows in the order in which they were written, also within a millisecond."""
    return row.get(TIME, 0.0), row["images_seen"]


class _Writer(logging.Handler):
    """Log records are written at once; a thread looks for rows. Trouble with the file is told, and ends no run."""

    def __init__(self, store: Storage) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT, STAMP))
        self._store, self._written = store, True
        self._text = b"" if store.local else through_outages(lambda: self._content(LOG), LOG)
        rows = through_outages(lambda: self._content(METRICS), LOG)
        self._read = len(rows)
        self._told = max(map(_write_order, rows_of(rows)), default=(0.0, 0))
        # a signal's handler may log while its thread is writing here
        self._own, self._ending = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pathray-run-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
        except OSError:
            self.handleError(record)

    def note(self, words: str) -> None:
        """A line from here; it must not hide what it tells of."""
        try:
            self._write(f"{time.strftime(STAMP)} {words}")
        except OSError as e:
            print(f"{LOG} cannot be written: {e}", file=sys.stderr)

    def flush(self) -> None:
        """What was written so far is on storage: a process may end without more ado."""
        try:
            self._flush()
        except OSError as e:
            print(f"{LOG} cannot be written: {e}", file=sys.stderr)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._look()
        super().close()

    def _follow(self) -> None:
        while not self._ending.wait(LOCAL_EVERY_S if self._store.local else REMOTE_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            self._tell_rows()
            self._flush()
        except OSError as e:  # tried again at the next look
            print(f"{LOG} cannot be written now: {e}", file=sys.stderr)

    def _tell_rows(self) -> None:
        """The new rows: by their time, since a resumed run cuts its metrics back."""
        content = self._content(METRICS, self._read if self._store.local else 0)
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for row in rows_of(whole):
            if _write_order(row) > self._told:
                self._told = _write_order(row)
                self._write(f"{time.strftime(STAMP, time.localtime(row[TIME]))} {line_of(row)}")

    def _content(self, name: str, start: int = 0) -> bytes:
        """A file from `start` on, or from its beginning where it has become shorter; empty where there is none."""
        if not self._store.local:
            try:
                return self._store.read_bytes(name)
            except MissingFile:
                return b""
        try:
            with open(self._store.path(name), "rb") as f:
                if f.seek(0, os.SEEK_END) < start:
                    self._read = start = 0
                f.seek(start)
                return f.read()
        except FileNotFoundError:
            return b""

    def _write(self, line: str) -> None:
        line = public_text(line)
        with self._own:
            if not self._store.local:
                self._text, self._written = self._text + line.encode() + b"\n", False
                return
            os.makedirs(self._store.path(), exist_ok=True)
            with open(self._store.path(LOG), "ab") as f:
                f.write(line.encode() + b"\n")

    def _flush(self) -> None:
        if self._store.local or self._written:
            return
        with self._own:
            text, self._written = self._text, True
        try:
            self._store.write_bytes(LOG, text)
        except OSError:
            self._written = False
            raise
