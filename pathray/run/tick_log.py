"""What a tick of the loop leaves in the run folder: a row of metrics.jsonl on rank 0, and a sign of life."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run.evaluations import Blocked
from pathray.run.failure import SharedFailure
from pathray.run.fence import write_guarded
from pathray.run.layout import METRICS, PROGRESS
from pathray.run.metrics_writer import MetricsWriter
from pathray.run.progress import write_beat
from pathray.store.storage import Storage, StorageError
from pathray.train.assembly import Watch
from pathray.train.supervised import SupervisedTick

log = logging.getLogger(__name__)
BEAT_EVERY_S = 5.0


class TickLog:
    """`metrics` is None on other ranks than 0, which leave nothing; the watch looks at every tick on every rank.

    `guard` is called before each write of rank 0: see `MetricsWriter`.
    """

    def __init__(
        self,
        store: Storage,
        device: Device,
        plan: Plan,
        watch: Watch | None,
        failure: SharedFailure,
        passes_name: str = "passes_seen",
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.plan, self.watch, self.failure, self.passes_name = store, plan, watch, failure, passes_name
        self.guard = guard
        self.metrics = MetricsWriter(store.join(METRICS), guard) if device.rank == 0 else None
        self.beat_at = 0.0

    def start(self, images_seen: int, first: dict[str, float]) -> None:
        """Drop the rows beyond the position where the run starts; `first` are the figures of the first row of all."""
        if self.metrics is not None:
            self.metrics.cut_back(images_seen)
            if first:
                self.metrics.append({"images_seen": 0, **first})

    def write(self, tick: SupervisedTick, blocked: Blocked) -> None:
        """The row of a tick that has metrics, a validation or figures of the watch."""
        if tick.end is None:
            self.beat(tick.images_seen)
        figures = self.watch.observe(tick) if self.watch is not None else {}
        figures |= {f"val/{name}": value for name, value in (tick.validation or {}).items()}
        if self.metrics is None or (tick.metrics is None and not figures):
            return
        passes = tick.images_seen / self.plan.rows
        row = {"images_seen": tick.images_seen, "step": tick.step, self.passes_name: passes}
        with self.failure.keep_error():
            self.metrics.append({**row, **(tick.metrics or {}), **tick.digests, **figures, **blocked.figures()})

    def beat(self, images_seen: int) -> None:
        """How far the run is: metrics may be hours apart. Not on object storage, where a write holds up the step."""
        if self.metrics is None or not self.store.local or time.monotonic() - self.beat_at < BEAT_EVERY_S:
            return
        self.beat_at = time.monotonic()
        with self.failure.keep_error():
            try:
                self.guard()
                write_beat(self.store.without_retries(), images_seen)
            except StorageError as e:  # no step waits for a sign of life
                if not e.passing:
                    raise
                log.warning("%s could not be written; retrying: %s", PROGRESS, e)

    def check(self) -> None:
        """Note what the log's thread met that no later try can mend."""
        if self.metrics is not None:
            with self.failure.keep_error():
                self.metrics.check()

    def close(self) -> None:
        """Until every row is on storage."""
        if self.metrics is not None:
            with self.failure.keep_error():
                self.metrics.close()

    def end(self, images_seen: int, end: str) -> None:
        """The last sign of life says how the run ended."""
        if self.beat_at:
            write_guarded(self.guard, lambda: write_beat(self.store, images_seen, end), PROGRESS)
