"""How often the evaluation of a snapshot was tried, noted in the run's folder: retries are bounded over restarts, too.

A note is made when an attempt begins, and completed when it fails. One that was begun and never completed died with its
process, or with the whole job. Notes go when the snapshot has its row (pathray.evaluation.results). No Ray.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from pathray.store.exclusive import content
from pathray.store.storage import Storage, StorageError
from pathray.urls import public_text

log = logging.getLogger(__name__)

FOLDER = "robustness/attempts"
INTERRUPTIONS = 3  # attempts that died without an error are forgiven so often: the whole job may have been killed
LONGEST_TRACE = 8000


class Attempts:
    """Attempts at the evaluation of `snapshot`, the name of its directory, in a run's folder; without a folder they are
    known to this process only."""

    def __init__(self, store: Storage | None = None, snapshot: str = "") -> None:
        self._store, self._name = store, f"{FOLDER}/{snapshot}.json"
        self._noted = self._read()

    def begin(self) -> None:
        self._noted.append({"began": time.time()})
        self._write()

    def fail(self, error: str, trace: str) -> None:
        """Complete the note of the attempt that was begun last."""
        self._noted[-1] |= {"error": public_text(error), "trace": public_text(trace)[-LONGEST_TRACE:]}
        self._write()

    def forgive(self) -> None:
        """Take back an attempt that was ended on purpose, before it failed."""
        if self._noted and "error" not in self._noted[-1]:
            self._noted.pop()
            self._write()

    def are_spent(self, retries: int) -> bool:
        """Whether nothing is left to try: `retries` more than one have failed, or too many have died."""
        failed = sum("error" in attempt for attempt in self._noted)
        return failed > retries or len(self._noted) > retries + INTERRUPTIONS

    def last(self) -> tuple[str, str]:
        """What went wrong, and its trace."""
        if "error" in self._noted[-1]:
            return str(self._noted[-1]["error"]), str(self._noted[-1].get("trace", ""))
        return f"{len(self._noted)} attempts were begun, and the last one's process died without an error", ""

    def clear(self) -> None:
        """Remove the notes. StorageError when they cannot be removed."""
        if self._store is not None:
            self._store.remove(self._name)

    def _read(self) -> list[dict[str, Any]]:
        try:
            data = None if self._store is None else content(self._store, self._name)
            noted: Any = [] if data is None else json.loads(data)
        except (StorageError, ValueError) as e:
            log.warning("earlier attempts at this evaluation are not known: %s", e)
            return []
        return [note for note in noted if isinstance(note, dict)] if isinstance(noted, list) else []

    def _write(self) -> None:
        if self._store is None:
            return
        try:
            self._store.write_bytes(self._name, json.dumps(self._noted, indent=1).encode())
        except StorageError as e:  # the evaluation matters more
            log.warning("the attempt at this evaluation could not be noted: %s", e)
