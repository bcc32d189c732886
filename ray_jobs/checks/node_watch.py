"""Detects that an embedded Ray's node process (the raylet) has died; Ray's own calls would wait for it forever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pathray.errors import UserError

LOST = signal.SIGRTMIN + 9  # our own signal, which raises on the main thread
LOOK_S = 1.0


class NodeLost(BaseException):
    """Raised on the main thread when the node process is gone."""


@contextmanager
def watched_node() -> Iterator[None]:
    """Raise UserError soon after this process's raylet dies within the block (main thread only)."""
    process = _raylet()
    if process is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def raise_lost(signum: int, frame: Any) -> None:
        if not over.is_set():
            raise NodeLost

    before = signal.signal(LOST, raise_lost)
    thread = threading.Thread(target=_watch, args=(process, over), name="pathray-node-watch", daemon=True)
    thread.start()
    try:
        yield
    except NodeLost as e:
        raise lost_error() from e
    except UserError:
        raise
    except Exception as e:
        if process.poll() is not None:
            raise lost_error() from e
        raise
    finally:
        over.set()
        signal.signal(LOST, before)


def lost_error() -> UserError:
    return UserError(
        "Ray's process on this machine (raylet) died during the job, possibly out of memory (see dmesg)",
        expected="run the same command again to resume from what is saved; use fewer workers if memory was short",
    )


def _watch(process: Any, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        if process.poll() is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, LOST)
            return


def _raylet() -> Any:
    """The raylet's process from Ray's developer interface; None if it is not available."""
    try:
        from ray._private import worker

        node: Any = worker._global_node
        return node.all_processes["raylet"][0].process
    except (ImportError, AttributeError, KeyError, IndexError):
        return None


def end_with(shutdown: Any, seconds: float = 10.0) -> None:
    """Call `shutdown()` and wait at most `seconds`: after a lost node it may never return."""
    thread = threading.Thread(target=shutdown, name="pathray-shutdown", daemon=True)
    thread.start()
    thread.join(seconds)
