"""Wait for storage that is away: what it refuses for a while is tried again, what no later try can mend is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pathray.errors import UnreachableUnit
from pathray.store.storage import StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")

OUTAGE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 1.0, 60.0
START = "the start of the training"  # of a rank, also after another one died


def through_outages(
    action: Callable[[], T], what: str, *, outage_s: float = OUTAGE_S, first_pause_s: float = FIRST_PAUSE_S
) -> T:
    """`action()`, tried again with growing pauses for `outage_s` seconds while storage is away.

    Logs that `what` waits. Raises the last StorageError after that time, and one that will not pass at once.
    """
    until, pause = time.monotonic() + outage_s, first_pause_s
    while True:
        try:
            return action()
        except StorageError as e:
            left = until - time.monotonic()
            if not e.passing or left <= 0:
                raise
            pause = min(pause, left)
            log.warning("%s waits for storage; retrying in %.0f s: %s", what, pause, e)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def read_through_outages(read: Callable[[], T], what: str) -> T:
    """`read()` of a unit of data, tried again while its storage cannot be reached (UnreachableUnit), which is no fault
    of the unit. Raises what else `read` raises, and a StorageError, naming the file, for storage that stays away."""

    def attempt() -> T:
        try:
            return read()
        except UnreachableUnit as e:
            raise StorageError.temporary(f"{what} cannot be reached", file=e.path, found=e.detail) from e

    return through_outages(attempt, what)


class Looks:
    """Looks again and again at storage that may be away: a look that fails for a while finds nothing yet."""

    def __init__(self, what: str) -> None:
        self.what, self.away = what, False

    def look(self, action: Callable[[], T], nothing: T) -> T:
        """`action()`, or `nothing` while storage is away, which is logged once. Raises a StorageError that will not
        pass."""
        try:
            found = action()
        except StorageError as e:
            if not e.passing:
                raise
            if not self.away:
                log.warning("could not look for %s; retrying: %s", self.what, e)
            self.away = True
            return nothing
        self.away = False
        return found
