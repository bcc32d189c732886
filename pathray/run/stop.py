"""Ask a run to checkpoint and end: an object in its folder, which all ranks look for together."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import Any

from pathray.evaluation.early_stopping import EARLY_STOPPED
from pathray.run.layout import STOP
from pathray.store.outages import through_outages
from pathray.store.storage import Storage

log = logging.getLogger(__name__)


def request_stop(run_dir: str, reason: str = "asked to") -> None:
    """What SIGTERM to the driver and an early stop do. A run that only begins removes an older request."""
    Storage.of(run_dir).write_bytes(STOP, json.dumps({"time": time.time(), "reason": reason}).encode())


def name_end(end: str, store: Storage, rank: int, images_seen: int) -> str:
    """How a run ended: ``early_stopped`` for a stop that an evaluator asked for, which rank 0 looks up, else `end`.
    Waits for storage: a run that is called interrupted exports nothing."""
    if end != "stopped" or rank != 0:
        return end
    asked: Any = None
    with suppress(OSError, ValueError):  # whatever else is in it was written by hand
        asked = json.loads(through_outages(lambda: store.read_bytes(STOP), STOP))
    if not isinstance(asked, dict) or asked.get("reason") != EARLY_STOPPED:
        return end
    log.warning("early stopping: ended at %s images", f"{images_seen:,}")
    return EARLY_STOPPED
