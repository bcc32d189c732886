"""Ask a run to checkpoint and end: an object in its folder, which all ranks look for together."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from pathray.run.layout import STOP
from pathray.store.storage import Storage


def request_stop(run_dir: str, reason: str = "asked to") -> None:
    """What SIGTERM to the driver and an early stop do. A run that only begins removes an older request."""
    Storage.of(run_dir).write_bytes(STOP, json.dumps({"time": time.time(), "reason": reason}).encode())


def reason_of(store: Storage) -> str:
    """Why the run is asked to stop; empty where the file was written by hand."""
    asked: Any = None
    with suppress(OSError, ValueError):  # whatever else is in it was written by hand
        asked = json.loads(store.read_bytes(STOP))
    return str(asked.get("reason", "")) if isinstance(asked, dict) else ""
