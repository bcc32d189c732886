"""Ask a run to checkpoint and end: an object in its folder, which all ranks look for together."""

from __future__ import annotations

import json
import time

from pathray.run.layout import STOP
from pathray.store.storage import Storage


def request_stop(run_dir: str, reason: str = "asked to") -> None:
    """What SIGTERM to the driver and an early stop do. A run that only begins removes an older request."""
    Storage.of(run_dir).write_bytes(STOP, json.dumps({"time": time.time(), "reason": reason}).encode())
