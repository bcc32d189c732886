"""Counts recent slow reads: storage that hangs ends a run, storage that is slow now and then does not."""

from __future__ import annotations

from collections import deque

WINDOW = 1024  # a slow read is forgotten after this many units


class Stalls:
    """Counts slow reads among the newest ones. Not thread-safe: callers must hold a lock."""

    def __init__(self) -> None:
        self._read, self._slow_at = 0, deque[int]()

    def add(self) -> int:
        """Count a slow read; returns the number of slow reads within the last WINDOW units."""
        while self._slow_at and self._read - self._slow_at[0] >= WINDOW:
            self._slow_at.popleft()
        self._slow_at.append(self._read)
        return len(self._slow_at)

    def succeed(self, units: int) -> None:
        """Count units that were read."""
        self._read += units
