"""The train function: what one Ray Train worker does from its start to the end of the run. Science-agnostic.

Load the newest committed checkpoint → open this rank's stream at its position → consume the loop's ticks: log, save,
note what was unreadable. What several ranks must agree on (which checkpoint, when to stop) is decided by rank 0 and
broadcast, or travels with the gradients.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from typing import Any

from core.errors import UserError

CHECKPOINTS, METRICS, ENCODER = "checkpoints", "metrics.jsonl", "encoder"


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
        fatal = {"message": e.message, "where": where, "trace": traceback.format_exc()}
        store.write_bytes(note, json.dumps(fatal).encode())
        raise


class _Worker:
    """One rank's run: its parts, and what is done at each tick."""

    def __init__(self, job: Any, store: Any) -> None:
        from core.checkpoint import AsyncSaver
        from core.device import Device
        from core.plan import Plan
        from core.tracking import MetricsLog

        self.job, self.store = job, store
        self.device = Device.of(job.accelerator)
        self.rank, self.world = self.device.rank, self.device.world_size
        self.plan = Plan.open(job.plan_path)
        self.parts = job.assemble(job.config, self.plan, self.world)
        self.root = store.join(CHECKPOINTS)
        self.log = MetricsLog(store.join(METRICS)) if self.rank == 0 else None
        self.saver = AsyncSaver()
        self.faults: list[Any] = []
        self.faults_since = 0

    def train(self) -> dict[str, Any]:
        from core.train.loop import run
        from core.train.state import TrainState

        parts = self.parts
        state = TrainState(parts.recipe, parts.settings, self.device)
        self._resume(state)
        ticks = run(
            parts.recipe, self._batches, parts.settings, device=self.device, state=state, stop=self._stop_requested
        )
        end, metrics = "budget", dict[str, float]()
        with self.saver:
            for tick in ticks:
                if tick.metrics is not None:
                    metrics = tick.metrics
                    self._log_metrics(tick)
                if tick.save or tick.snapshot or tick.end or self._preempted(tick.step):
                    self._save(tick)
                end = tick.end or end
        return self._finish(state, end, metrics)

    def _resume(self, state: Any) -> None:
        """Load the checkpoint that rank 0 chose, if there is one; UserError when it belongs to another run."""
        from core import checkpoint
        from ray_jobs import quarantine

        path = self.device.broadcast_object(self._chosen() if self.rank == 0 else None)
        if path is not None:
            tensors, meta = checkpoint.load(path)
            checkpoint.check_identity(meta, self.parts.identity)
            state.load(tensors, meta)
        self.faults_since = state.images_seen
        if self.log is not None:
            self.log.cut_back(state.images_seen)
            quarantine.sweep(self.store, state.images_seen)
            if path is None and self.job.start_metrics:
                self.log.append({"images_seen": 0, **self.job.start_metrics})

    def _chosen(self) -> str | None:
        """The checkpoint to go on from: the newest of this run; before there is one, what `resume` names."""
        from core import checkpoint

        newest = checkpoint.latest(self.root, self.parts.tag)
        if self.job.resume == "never" and newest is not None and newest.meta.get("fit_id") != self.job.fit_id:
            message = "the output folder already holds checkpoints of a run"
            raise UserError(
                message, file=newest.path, key="checkpoint.resume", found="never", expected="auto, or a new output"
            )
        if newest is not None:
            return str(newest.path)
        return self.job.resume if self.job.resume not in ("auto", "never") else None

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        from core.stream import Lookup
        from ray_jobs.streams import Share, stream

        parts, settings = self.parts, self.parts.settings
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

    def _log_metrics(self, tick: Any) -> None:
        if self.log is not None:
            passes = tick.images_seen / self.plan.rows
            self.log.append(
                {"images_seen": tick.images_seen, "step": tick.step, "anchor_passes_seen": passes, **tick.metrics}
            )

    def _stop_requested(self) -> bool:
        """Polled by the loop on rank 0 only; the answer travels with the gradients."""
        return bool(self.store.exists("STOP"))

    def _preempted(self, step: int) -> bool:
        """Whether a node is about to be taken away, agreed over all ranks: save now, go on. A barrier: on cadence."""
        every = self.job.scaling.preemption_check_steps
        if every <= 0 or step % every:
            return False
        import ray.train

        return ray.train.get_preemption_info() is not None

    def _save(self, tick: Any) -> None:
        """A checkpoint (rank 0, written while training goes on) and this rank's quarantine part."""
        from core import checkpoint

        self._write_faults(tick.images_seen)
        if self.log is None:
            return
        self.log.flush()
        tag, parts = self.parts.tag, self.parts
        name = f"{tag}-img{tick.images_seen}" if tick.snapshot else f"{tag}-latest"
        meta = {
            **tick.state.meta(),
            "identity": parts.identity,
            "placement": parts.placement,
            "science": parts.science,
            "fit_id": self.job.fit_id,
        }
        self.saver.save(self.root, name, tick.state.tensors(), meta)
        checkpoint.prune(self.root, f"{tag}-latest", parts.keep_last_n)

    def _write_faults(self, images_seen: int) -> None:
        """This rank's unreadable units since the last save, as a parquet part named by the positions it covers."""
        if self.faults:
            from ray_jobs.quarantine import part_name, to_parquet

            self.store.write_bytes(part_name(self.faults_since, images_seen, self.rank), to_parquet(self.faults))
        self.faults_since, self.faults = images_seen, []

    def _finish(self, state: Any, end: str, metrics: dict[str, float]) -> dict[str, Any]:
        """At the end of the budget rank 0 exports the artifact; the rest of the outcome is where things lie."""
        artifact, last = None, self.saver.last
        if end == "budget" and self.rank == 0:
            identity = self.parts.identity["hash"]
            provenance = {"images_seen": state.images_seen, "identity": identity, "tag": self.parts.tag}
            artifact = self.store.join(ENCODER)
            self.parts.export(self.parts.recipe, artifact, provenance)
        checkpoint = last.path if last is not None else (self._chosen() if self.rank == 0 else None)
        return {
            "end": end,
            "images_seen": state.images_seen,
            "metrics": metrics,
            "artifact": artifact,
            "checkpoint": checkpoint,
        }
