"""A limit of time that ends the process, for work that nothing else ends: a library that never comes back."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End this process, its threads' traces on standard error, when the block takes longer; 0: never.

    Also while a library holds the interpreter's lock. One block at a time in a process: the newest limit counts.
    """
    if seconds <= 0:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
