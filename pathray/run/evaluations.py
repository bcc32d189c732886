"""How long a run stands still for evaluations of its snapshots, and the wait for one (`tuning.execution.mode` sync)."""

from __future__ import annotations

import logging
import time

from pathray.device import Device
from pathray.evaluation import results
from pathray.run.failure import SharedFailure
from pathray.run.layout import STOP
from pathray.store.storage import Storage, StorageError

log = logging.getLogger(__name__)
SYNC_POLL_S = 1.0


class Blocked:
    """How long the training stood still in snapshot calls, and the share of its time that this is."""

    def __init__(self) -> None:
        self.total_s, self.calls, self.began = 0.0, 0, time.monotonic()

    def add(self, seconds: float) -> None:
        self.total_s += seconds
        self.calls += 1

    def figures(self) -> dict[str, float]:
        if not self.calls:
            return {}
        share = self.total_s / max(1e-9, time.monotonic() - self.began)
        return {"tune/blocked_s": self.total_s, "tune/blocked_share": share}


def wait_for_evaluation(store: Storage, images_seen: int, device: Device, failure: SharedFailure) -> None:
    """Until the snapshot at `images_seen` was evaluated, a stop is asked for, or nobody evaluates: on all ranks."""
    while True:
        over = device.rank != 0 or failure.error is not None or _is_over(store, images_seen)
        if device.broadcast_object(over):
            return
        time.sleep(SYNC_POLL_S)


def _is_over(store: Storage, images_seen: int) -> bool:
    try:
        if results.is_evaluated(store.url, images_seen) or store.exists(STOP):
            return True
        if results.has_live_evaluator(store.url):
            return False
        log.warning("nobody evaluates the snapshot at %s images: training continues", f"{images_seen:,}")
    except StorageError as e:
        log.warning("the snapshot's evaluation could not be looked up; training continues: %s", e)
    return True
