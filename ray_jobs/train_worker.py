"""The train function: what one Ray Train worker does from its start to the end of the run. Science-agnostic.

Load the newest committed checkpoint → open this rank's stream at its position → consume the loop's ticks: log, save,
snapshot, note what was unreadable. Everything that several ranks must agree on (which checkpoint, when to stop) is decided
by rank 0 and broadcast, or travels with the gradients.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from typing import Any

from core.errors import UserError


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Entry point given to Ray Train. Returns rank 0's outcome as plain data.

    A UserError (the user's to mend, so a restart would only meet it again) is noted in the run folder; the next attempt
    finds the note and ends at once with it.
    """
    from core.storage import Storage

    job = loop_config["job"]
    store = Storage.of(job.run_dir)
    note = f"ray/fatal-{job.fit_id}.json"
    if store.exists(note):
        return {"fatal": json.loads(store.read_bytes(note))}
    try:
        return _Worker(job, store).train()
    except UserError as e:
        where = {k: None if v is None else str(v) for k, v in e.where.items()}
        store.write_bytes(
            note, json.dumps({"message": e.message, "where": where, "trace": traceback.format_exc()}).encode()
        )
        raise


class _Worker:
    """One rank's run: its parts, and what is done at each tick."""

    def __init__(self, job: Any, store: Any) -> None:
        from core.device import Device
        from core.plan import Plan

        self.job, self.store = job, store
        self.device = Device.of(job.scaling.accelerator)
        self.rank, self.world = self.device.rank, self.device.world_size
        self.plan = Plan.open(job.plan_path)
        self.parts = job.assemble(job.config, self.plan, self.world)
        self.faults: list[Any] = []
        self.first_position = 0
        self.saver: Any = None

    def train(self) -> dict[str, Any]:
        from core.checkpoint import AsyncSaver
        from core.tracking import MetricsLog
        from core.train.loop import TrainState, run

        parts = self.parts
        state = TrainState(parts.recipe, parts.settings, self.device)
        resumed = self._resume(state)
        self.first_position = state.images_seen
        self.saver = AsyncSaver()
        metrics: dict[str, float] = {}
        log = MetricsLog(self.store.join("metrics.jsonl")) if self.rank == 0 else None
        if log is not None:
            log.cut_back(state.images_seen)
            self._sweep_faults(state.images_seen)
        end = "budget"
        try:
            for tick in run(
                parts.recipe, self._batches, parts.settings, device=self.device, state=state, stop=self._stop_requested
            ):
                if tick.metrics is not None:
                    metrics = tick.metrics
                    if log is not None:
                        log.append({"images_seen": tick.images_seen, "step": tick.step, **tick.metrics})
                if tick.save or tick.snapshot or tick.end or self._preempted(tick.step):
                    self._save(tick)
                end = tick.end or end
        finally:
            self.saver.close()
        return self._finish(state, end, metrics, resumed)

    def _resume(self, state: Any) -> str | None:
        """Load the newest committed checkpoint, chosen by rank 0; UserError when it belongs to another run."""
        from core import checkpoint

        choice = checkpoint.latest(self.store.join("checkpoints"), self.parts.tag) if self.rank == 0 else None
        path = self.device.broadcast_object(choice.path if choice is not None else None)
        if path is None:
            return None
        tensors, meta = checkpoint.load(path)
        checkpoint.check_identity(meta, self.parts.identity)
        state.load(tensors, meta)
        return str(path)

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        from core.stream import Lookup
        from ray_jobs.streams import Share, stream

        parts = self.parts
        settings = parts.settings
        share = Share(start, settings.total_images, settings.global_batch, settings.micro_batch, self.rank, self.world)
        batches = stream(
            Lookup(self.plan, parts.order),
            parts.reader,
            share,
            decode_on=parts.decode_on,
            settings=parts.decode,
            tasks=parts.decode_tasks,
            chunk=parts.chunk,
        )
        for batch in batches:
            self.faults += batch.pop("faults")
            yield batch

    def _stop_requested(self) -> bool:
        """Polled by the loop on rank 0 only; the answer travels with the gradients."""
        return bool(self.store.exists("STOP"))

    def _preempted(self, step: int) -> bool:
        """Whether a node is about to be taken away, agreed over all ranks: save now, go on. A barrier, so on cadence."""
        every = self.job.scaling.preemption_check_steps
        if every <= 0 or step % every:
            return False
        import ray.train

        return ray.train.get_preemption_info() is not None

    def _save(self, tick: Any) -> None:
        """Checkpoint (rank 0, asynchronously) and this rank's quarantine part."""
        from core import checkpoint

        self._write_faults(tick.images_seen)
        if self.rank != 0:
            return
        parts, root = self.parts, self.store.join("checkpoints")
        names = [f"{parts.tag}-img{tick.images_seen}"] if tick.snapshot else []
        names += [f"{parts.tag}-latest"] if tick.save or tick.end or not names else []
        meta = {"identity": parts.identity, "placement": parts.placement, "science": parts.science}
        for name in names:
            self.saver.save(root, name, tick.state.tensors(), {**tick.state.meta(), **meta})
        checkpoint.prune(root, f"{parts.tag}-latest", keep_last_n=parts.keep_last_n)

    def _write_faults(self, images_seen: int) -> None:
        """This rank's unreadable units since the last save, as one parquet part; positions make parts of a re-run stale."""
        if not self.faults:
            return
        from ray_jobs.quarantine import part_name, to_parquet

        self.store.write_bytes(part_name(self.first_position, images_seen, self.rank), to_parquet(self.faults))
        self.first_position, self.faults = images_seen, []

    def _finish(self, state: Any, end: str, metrics: dict[str, float], resumed: str | None) -> dict[str, Any]:
        artifact = None
        if end == "budget" and self.rank == 0:
            provenance = {
                "images_seen": state.images_seen,
                "identity": self.parts.identity["hash"],
                "tag": self.parts.tag,
            }
            self.parts.export(self.parts.recipe, self.store.join("encoder"), provenance)
            artifact = self.store.join("encoder")
        return {
            "end": end,
            "images_seen": state.images_seen,
            "metrics": metrics,
            "artifact": artifact,
            "resumed": resumed,
        }
