"""Rows of metrics.jsonl on their way to storage: a queue and a thread, so that no step waits for a bucket.

Rows keep their order and none is lost: while storage is away they wait in memory, and are written when it is back.
What can never be written (a full disk, a missing permission, a run that another start took over) is raised at the next
`check`, `flush` or `close`. Not here: the file's format (pathray.store.metrics_log).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pathray.store.metrics_log import REMOTE_FLUSH_S, MetricsLog, line_of
from pathray.store.storage import StorageError

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0  # between tries while storage is away
CLOSE_S = 600.0


class MetricsWriter:
    """Appends rows to the metrics.jsonl at `path`, a path or a URL, from a thread of its own.

    guard(): called before each write; raises when this process must not write any more (`Fence.check`).
    """

    def __init__(
        self,
        path: str,
        guard: Callable[[], None] = lambda: None,
        *,
        flush_every_s: float = REMOTE_FLUSH_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._path, self._guard = path, guard
        self._flush_every_s, self._first_pause_s = flush_every_s, first_pause_s
        self._log = MetricsLog(path, flush_every_s=flush_every_s, retries=False)
        self._queue = deque[bytes]()
        self._given = self._added = self._stored = 0  # rows appended, given to the log, and on storage
        self._wanted = 0  # rows that somebody waits for
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._trouble: StorageError | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def cut_back(self, images_seen: int) -> int:
        """Drop the rows beyond `images_seen`, when a run resumes, before the first row; how many there were."""
        assert self._thread is None, "rows are cut back before the first is appended"
        self._guard()
        return MetricsLog(self._path).cut_back(images_seen)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row (see `MetricsLog.append`); returns at once."""
        line = line_of(row)
        with self._changed:
            assert not self._closing, "the log is closed"
            self._queue.append(line)
            self._given += 1
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="pathray-metrics", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise what no later try can mend; never waits."""
        with self._changed:
            self._raise_error()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all rows so far are on storage; False when they still wait in memory after `timeout` seconds.

        Raises what no later try can mend.
        """
        with self._changed:
            mark = self._wanted = self._given
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stored >= mark or self._error is not None, timeout)
            self._raise_error()
            return self._stored >= mark

    def close(self, timeout: float = CLOSE_S) -> None:
        """Write what is left and end the thread. StorageError when storage was away for all of `timeout` seconds."""
        try:
            if not self.flush(timeout):
                raise self._trouble or StorageError("storage gives no answer: rows are lost", file=self._path)
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(timeout=1.0)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        pause = 0.0
        while self._wait_for_work(pause):
            try:
                self._store_rows()
                pause, self._trouble = 0.0, None
            except StorageError as e:
                if not e.passing:
                    self._fail(e)
                    return
                pause = min(2 * pause, LONGEST_PAUSE_S) or self._first_pause_s
                self._complain(e)
            except BaseException as e:  # raised by the next check() or flush()
                self._fail(e)
                return

    def _wait_for_work(self, pause: float) -> bool:
        """Wait until rows can be written, at least `pause` seconds; False when the log is closed."""
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._closing, pause)
            while not (self._closing or self._queue or self._upload_is_due()):
                self._changed.wait(self._flush_every_s if self._stored < self._added else None)
            return not self._closing

    def _upload_is_due(self) -> bool:
        return self._stored < self._added and (self._wanted > self._stored or self._log.due())

    def _store_rows(self) -> None:
        """Write what waits: on a disk row by row, to an object store all of it when an upload is due."""
        if self._log.local:
            self._guard()
        while self._queue:
            self._log.append_line(self._queue[0])
            self._queue.popleft()
            self._added += 1
        if not self._log.local:
            if not self._upload_is_due():
                return
            self._guard()
            self._log.flush()
        with self._changed:
            self._stored = self._added
            self._changed.notify_all()

    def _complain(self, error: StorageError) -> None:
        if self._trouble is None:
            log.warning("metrics wait in memory, and are written when storage is back: %s", error)
            log.debug("the trouble with storage", exc_info=error)
        self._trouble = error

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
