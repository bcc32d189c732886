"""Redirects Ray's own output to a log file while a job uses Ray; the job's output and all errors stay on the terminal.

Ray's compiled code writes to file descriptor 2, which is redirected to the file; Python's sys.stderr still goes to the
terminal. faulthandler reports a native crash on the terminal.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

NAME = "pathray-driver.log"  # in the folder of Ray's logs
STDERR = 2
_own: TextIO | None = None
NOISE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # warnings for developers


def own_stderr() -> None:
    """Give Python's sys.stderr its own descriptor for the rest of the process, which `quiet_driver` does not redirect.
    No effect if sys.stderr is not descriptor 2."""
    global _own
    if _descriptor(sys.stderr) == STDERR:
        sys.stderr.flush()
        kept = os.fdopen(os.dup(STDERR), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        sys.stderr = _own = kept


@contextmanager
def quiet_driver(path: str) -> Iterator[None]:
    """Within the block, append Ray's messages below error level to `path`. No effect without `own_stderr`, off the main
    thread, or if `path` cannot be written."""
    if _own is None or sys.stderr is not _own or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        yield
        return
    os.dup2(log, STDERR)
    os.close(log)
    faulthandler.enable(_own)
    hidden = os.fdopen(STDERR, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    try:
        with _noise_to(hidden, _own):
            yield
    finally:
        hidden.flush()
        faulthandler.disable()
        os.dup2(_own.fileno(), STDERR)


@contextmanager
def _noise_to(hidden: TextIO, visible: TextIO) -> Iterator[None]:
    """Send Ray's logger and warnings for developers to `hidden`; errors also go to `visible`."""
    ray, shown = logging.getLogger("ray"), warnings.showwarning
    moved = [h for h in ray.handlers if isinstance(h, logging.StreamHandler) and h.stream is visible]
    errors = logging.StreamHandler(visible)
    errors.setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        stream = hidden if issubclass(category, NOISE) else visible
        stream.write(warnings.formatwarning(message, category, filename, lineno))

    warnings.showwarning = show  # type: ignore[assignment]
    for handler in moved:
        handler.setStream(hidden)
    ray.addHandler(errors)
    try:
        yield
    finally:
        ray.removeHandler(errors)
        for handler in moved:
            handler.setStream(visible)
        warnings.showwarning = shown


def _descriptor(stream: Any) -> int:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # a replaced stream
        return -1


def to_terminal(words: str) -> None:
    """Write a line to the terminal from a signal handler, which must not use a buffer."""
    descriptor = _descriptor(sys.stderr)
    os.write(descriptor if descriptor >= 0 else STDERR, words.encode() + b"\n")
