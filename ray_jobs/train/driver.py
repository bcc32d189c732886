"""A training as its driver sees it: signals become a request to stop, and progress is shown while it runs.

Train functions do not run on the main thread, so they get no signals.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pathray.errors import user_error_in
from pathray.run.progress import TrainingProgress
from pathray.run.stop import request_stop
from pathray.store.outages import through_outages
from ray_jobs.shell.cli import Terminated

log = logging.getLogger(__name__)
WAITING_S = 15.0  # between words of a driver that waits for the last checkpoint


def run_in_thread(action: Callable[[], Any], store: Any, total_images: int, name: str = "train") -> Any:
    """What `action` returns or raises, run next to the main thread, which shows how far the training is and takes
    signals: the first asks to stop, the second ends."""
    result: dict[str, Any] = {}
    progress = TrainingProgress(store, total_images, name)

    def run() -> None:
        try:
            result["value"] = action()
        except BaseException as e:  # carried to the main thread, which raises it
            result["error"] = e

    thread = threading.Thread(target=run, name="pathray-fit", daemon=True)
    with stop_on_signals(store):
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                progress.look()
        finally:
            progress.close()
    if "error" in result:
        raise user_error_in(result["error"]) or result["error"]
    return result["value"]


@contextmanager
def stop_on_signals(store: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False
    ended = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        asked = True
        log.warning(
            "%s: waiting for the step in progress and a checkpoint, usually less than a minute; once more to end at "
            "once, from the checkpoint before",
            signal.Signals(signum).name,
        )
        stop = partial(through_outages, partial(request_stop, store.url), "the request to stop")
        threading.Thread(target=stop, daemon=True).start()
        threading.Thread(target=_log_waiting, args=(ended,), daemon=True).start()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        ended.set()
        for s, handler in before.items():
            signal.signal(s, handler)


def _log_waiting(ended: threading.Event) -> None:
    since = time.monotonic()
    while not ended.wait(WAITING_S):
        log.warning("still waiting for the checkpoint, for %.0f s", time.monotonic() - since)
