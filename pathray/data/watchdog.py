"""A time limit that ends the process, for library calls that may hang and cannot be interrupted."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def exit_after(seconds: float) -> Iterator[None]:
    """End this process, with its threads' traces on standard error, if the block takes longer; 0 means no limit.

    It works even while a library holds the interpreter lock. One block at a time per process: the newest limit counts.
    """
    if seconds <= 0:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
