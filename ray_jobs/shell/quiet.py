"""Ray's own words go to a log file while a job uses Ray; the terminal keeps the job's words and all errors.

Ray's compiled parts write to the file descriptor 2, which therefore leads to the file; what Python writes to sys.stderr
goes to the terminal as before. A native crash is told on the terminal by faulthandler.
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

NAME = "pathray-driver.log"  # in the folder of Ray's own logs
STDERR = 2
_own: TextIO | None = None
NOISE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # for developers


def own_stderr() -> None:
    """Give Python's sys.stderr a descriptor of its own, for the rest of the process: `quiet_driver` leaves it alone.
    Without effect where sys.stderr is not the process's."""
    global _own
    if _descriptor(sys.stderr) == STDERR:
        sys.stderr.flush()
        kept = os.fdopen(os.dup(STDERR), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        sys.stderr = _own = kept


@contextmanager
def quiet_driver(path: str) -> Iterator[None]:
    """While the block runs, what Ray says below an error is appended to `path`. Without effect without `own_stderr`,
    beside the main thread, or where `path` cannot be written."""
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
    """Ray's logger writes to `hidden`, from errors on to `visible` as well; warnings for developers to `hidden`."""
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
    except (AttributeError, OSError, ValueError):  # somebody's own stream
        return -1


def to_terminal(words: str) -> None:
    """A line on the terminal from inside a signal handler, which must not touch a buffer."""
    descriptor = _descriptor(sys.stderr)
    os.write(descriptor if descriptor >= 0 else STDERR, words.encode() + b"\n")
