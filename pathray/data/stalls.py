"""How many reads hang at present: a storage that hangs now ends a run, one that was slow now and then does not."""

from __future__ import annotations

from collections import deque

WINDOW = 1024  # units that are read after a slow one before it is forgotten


class Stalls:
    """Counts slow reads among the newest ones. Not safe in several threads: whoever calls holds a lock."""

    def __init__(self) -> None:
        self._read, self._slow_at = 0, deque[int]()

    def add(self) -> int:
        """Note a slow read; how many there are since WINDOW units ago."""
        while self._slow_at and self._read - self._slow_at[0] >= WINDOW:
            self._slow_at.popleft()
        self._slow_at.append(self._read)
        return len(self._slow_at)

    def succeed(self) -> None:
        """Note that a unit has been read."""
        self._read += 1
