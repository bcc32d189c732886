"""Whether a run was asked to stop, looked for in a thread, so that no step waits for storage.

Somebody asks by leaving an object named STOP in the run's folder (`python -m ray_jobs.stop`, an evaluator, a signal).
Not here: who asks, and what all ranks make of the answer.
"""

from __future__ import annotations

import logging
import threading

from pathray.run.layout import STOP
from pathray.store.storage import Storage, StorageError

log = logging.getLogger(__name__)

LOCAL_EVERY_S, REMOTE_EVERY_S = 0.2, 5.0


class StopPoll:
    """Looks for STOP in the folder every `every_s` seconds (None: often on a disk, seldom in a bucket) until it is
    found. Trouble with storage never ends anything: it is logged once, and looked again."""

    def __init__(self, store: Storage, every_s: float | None = None) -> None:
        self._store = store.without_retries()
        self._every_s = every_s if every_s is not None else LOCAL_EVERY_S if store.local else REMOTE_EVERY_S
        self._asked, self._ending = threading.Event(), threading.Event()
        self._troubled = False
        self._thread = threading.Thread(target=self._poll, name="pathray-stop-poll", daemon=True)
        self._thread.start()

    def is_requested(self) -> bool:
        """Whether a stop was asked for, according to the thread's last look; answers at once."""
        return self._asked.is_set()

    def look_now(self) -> bool:
        """Whether a stop was asked for, looked for now: waits for storage."""
        if not self._asked.is_set():
            self._look()
        return self._asked.is_set()

    def close(self) -> None:
        """End the thread, also where it waits for storage."""
        self._ending.set()
        self._thread.join(timeout=1.0)

    def __enter__(self) -> StopPoll:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _poll(self) -> None:
        while not self._asked.is_set() and not self._ending.is_set():
            self._look()
            self._ending.wait(self._every_s)

    def _look(self) -> None:
        try:
            if self._store.exists(STOP):
                self._asked.set()
            self._troubled = False
        except Exception as e:  # whatever a file system raises: a poll ends no run
            self._complain(e)

    def _complain(self, error: Exception) -> None:
        expected = isinstance(error, StorageError) and (error.passing or isinstance(error.__cause__, OSError))
        if not self._troubled:
            log.warning("could not look for %s; retrying: %s", STOP, error, exc_info=not expected)
            log.debug("the trouble with storage", exc_info=True)
        self._troubled = True
