"""What a run saves while it trains: rolling checkpoints, snapshots for evaluators, the best state, unreadable units."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pathray.device import Device
from pathray.run.evaluations import Blocked, wait_for_evaluation
from pathray.run.failure import SharedFailure
from pathray.run.layout import CHECKPOINTS, ENCODER
from pathray.run.metrics_writer import MetricsWriter
from pathray.run.quarantine import Faults
from pathray.store import checkpoint
from pathray.store.checkpoint import Also, AsyncSaver
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError
from pathray.train.assembly import Assembly
from pathray.train.state import TrainState

ROWS_S = 60.0  # a checkpoint waits for rows of metrics, before it is tried again


def provenance(parts: Assembly, state: TrainState) -> dict[str, Any]:
    """What an artifact says of where it comes from."""
    return {"images_seen": state.images_seen, "identity": parts.identity["hash"], "tag": parts.tag}


class Saves:
    """The saves of one rank. Rank 0 writes checkpoints, in the background; every rank its unreadable units.

    `metrics`: the log whose rows are on storage before a checkpoint counts, on rank 0; `guard` is called at the start
    of a save and before a checkpoint counts: it raises when another start owns the run. `blocked`: the time that
    snapshots took from training.
    """

    def __init__(
        self,
        parts: Assembly,
        store: Storage,
        device: Device,
        failure: SharedFailure,
        faults: Faults,
        metrics: MetricsWriter | None,
        fit_id: str = "",
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts, self.store, self.device, self.failure = parts, store, device, failure
        self.faults, self.metrics, self.fit_id, self.guard = faults, metrics, fit_id, guard
        self.root = store.join(CHECKPOINTS)
        self.saver = AsyncSaver()
        self.saved_at = time.monotonic()
        self.blocked = Blocked()

    def is_due(self) -> bool:
        """Whether the newest checkpoint is `latest_minutes` old. Polled like the wish to stop."""
        minutes = self.parts.latest_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def save_tick(self, tick: Any) -> None:
        """A checkpoint; under a name of its own where a snapshot is due, and of the last state for its evaluators."""
        every, last = self.parts.settings.snapshot_every, tick.end == "budget" and self.parts.tuning is not None
        if not (tick.snapshot or last):
            self.save(tick.state)
            return
        number = tick.images_seen // every if every else 0
        self.save(tick.state, snapshot=number if tick.snapshot else number + 1)

    def save(self, state: TrainState, snapshot: int | None = None, best: bool = False) -> None:
        """This rank's part of the quarantine report, and a checkpoint (rank 0, written while training continues).

        The checkpoint is begun when every rank's part is on storage: a rank that dies before takes the others back to
        the checkpoint before, from where the rows come again; one that dies later has lost none. `snapshot`: its number
        in the order of evaluations; `best`: of all that validation has seen.
        """
        began = self.saved_at = time.monotonic()
        tensors = state.tensors()  # on every rank: on XLA it is a graph, which all hosts run
        self._check_run_owner()
        with self.failure.keep_error():
            if self.failure.error is None:
                through_outages(lambda: self.faults.write(state.images_seen), "the report of unreadable units")
        self.device.gather_objects(None)
        with self.failure.keep_error():
            if self.metrics is not None and self.failure.error is None:
                self._save_checkpoint(state, tensors, snapshot, best)
        if snapshot is not None:
            self._wait_for_evaluation(state.images_seen)
            self.blocked.add(time.monotonic() - began)

    def close(self) -> None:
        """Until the last save is written."""
        with self.failure.keep_error():
            self.saver.close()

    def _check_run_owner(self) -> None:
        """On rank 0: nothing is begun for a run that another start owns. Each write looks again."""
        if self.metrics is None:
            return
        with self.failure.keep_error():
            try:
                self.guard()
            except StorageError as e:  # while storage is away, nobody can write
                if not e.passing:
                    raise

    def _save_checkpoint(
        self, state: TrainState, tensors: dict[str, Tensor], snapshot: int | None, best: bool = False
    ) -> None:
        parts = self.parts
        rolling = f"{parts.tag}-best" if best else f"{parts.tag}-latest"
        meta = {
            **state.meta(),
            "identity": parts.identity,
            "placement": parts.placement,
            "science": parts.science,
            "fit_id": self.fit_id,
        }

        def prune() -> None:
            checkpoint.prune(self.root, rolling, parts.keep_last_n)

        if snapshot is None:
            self.saver.save(self.root, rolling, tensors, meta, None, self._before_commit, prune)
        else:
            if parts.tuning is not None:  # without it nobody removes them
                meta["tune_index"] = snapshot
            name = f"{parts.tag}-img{state.images_seen}"
            self.saver.save(self.root, name, tensors, meta, self._encoder(state), self._before_commit, prune)

    def _before_commit(self) -> None:
        """In the saver's thread: the rows up to a checkpoint are there when it counts, and the run is still ours."""
        if self.metrics is not None and not self.metrics.flush(ROWS_S):
            raise StorageError.temporary("rows of metrics wait for storage", file=self.store.url)
        self.guard()  # last: rows may have waited for a minute

    def _encoder(self, state: TrainState) -> Also | None:
        """What writes the recipe's encoder next to a snapshot's tensors, from the same copies."""
        parts = self.parts
        if parts.encoder is None:
            return None
        encoder = parts.encoder(parts.recipe)
        names, facts = encoder.names_in(parts.recipe.modules), provenance(parts, state)

        def write(directory: Any, copies: dict[str, Tensor]) -> None:
            own = {name: copies[f"model.{inside}"] for name, inside in names.items()}
            encoder.write(directory, ENCODER, own, facts)

        return write

    def _wait_for_evaluation(self, images_seen: int) -> None:
        tuning = self.parts.tuning
        if tuning is None or tuning.execution.mode != "sync":
            return
        with self.failure.keep_error():
            self.saver.wait()
        wait_for_evaluation(self.store, images_seen, self.device, self.failure)
