"""The train function: what one Ray Train worker does from its start to the end of the run. Science-agnostic.

Load the newest committed checkpoint → open this rank's stream at its position → consume the loop's ticks: log, save,
note what was unreadable. What several ranks must agree on (which checkpoint, when to stop) is decided by rank 0 and
broadcast, or travels with the gradients.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pathray.errors import UserError
from pathray.evaluation.early_stopping import EARLY_STOPPED
from pathray.store.storage import Storage, StorageError, storage_error
from ray_jobs.shell.progress import BEAT
from ray_jobs.train.resume import CHECKPOINTS, check_resumable, chosen, naming

log = logging.getLogger(__name__)
METRICS, ENCODER, STOP = "metrics.jsonl", "encoder", "STOP"
BEAT_EVERY_S = 5.0
SYNC_POLL_S = 1.0
ENDED = ("budget", EARLY_STOPPED, "early_stop")  # as against interrupted: there is something to export


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Entry point given to Ray Train with the pickled TrainJob. Returns rank 0's outcome as plain data.

    A UserError is the user's to mend, so a restart would only meet it again. Where all ranks end with it together it is
    the outcome; where one rank alone does, the group has to be restarted: the error is noted in the run folder, and the
    next attempt finds the note and ends at once with it.
    """
    import pickle

    from pathray.train.recipe import TrainingStopped

    job = pickle.loads(loop_config["job"])
    store = Storage.of(job.run_dir)
    note = f"ray/fatal-{job.fit_id}.json"
    if store.exists(note):
        return {"fatal": json.loads(store.read_bytes(note))}
    try:
        with closing_journals(job.run_dir):
            return _Worker(job, store).train()
    except UserError as e:
        fatal = _fatal(e)
        if job.scaling.workers == 1 or isinstance(e, TrainingStopped):
            return {"fatal": fatal}
        try:
            store.write_bytes(note, json.dumps(fatal).encode())
        except StorageError as full:
            log.warning("the error could not be noted: %s", full)
        raise


@contextmanager
def closing_journals(run: str) -> Iterator[None]:
    """A worker that ends with an error is no crash of a decoder."""
    from pathray.data import crashes

    try:
        yield
    finally:
        crashes.end(run)


def _fatal(e: UserError) -> dict[str, Any]:
    where = {k: None if v is None else str(v) for k, v in e.where.items()}
    return {"message": e.message, "where": where, "trace": "".join(traceback.format_exception(e))}


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


class _Worker:
    """One rank's run: its parts, and what is done at each tick."""

    def __init__(self, job: Any, store: Any) -> None:
        from pathray.data.plan import Plan
        from pathray.device import Device
        from pathray.run.tracking import MetricsLog
        from pathray.store.checkpoint import AsyncSaver

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
        self.failed: UserError | None = None
        self.saved_at = time.monotonic()
        self.beat_at = 0.0
        self.blocked = Blocked()
        self.fresh = True

    def train(self) -> dict[str, Any]:
        from pathray.train.loop import run
        from pathray.train.state import TrainState
        from pathray.train.supervised import ended_early

        parts = self.parts
        state = TrainState(parts.recipe, parts.settings, self.device)
        self._resume(state)
        ticks = run(
            parts.recipe,
            self._batches,
            parts.settings,
            device=self.device,
            state=state,
            stop=self._stop_requested,
            save=self._save_is_due,
        )
        end, metrics, start = "budget", dict[str, float](), state.images_seen
        if parts.selection is not None and ended_early(state, parts.selection):  # interrupted after that
            end, ticks = "early_stop", iter(())
        try:
            self._baseline(state)
            for tick in self._validated(ticks):
                if tick.end is None:
                    self._beat(tick.images_seen)
                figures = parts.watch.observe(tick) if parts.watch is not None else {}
                figures |= {f"val/{name}": value for name, value in (tick.validation or {}).items()}
                if tick.metrics is not None or figures:
                    metrics = tick.metrics or metrics
                    self._log_metrics(tick, {**(tick.metrics or {}), **figures, **self.blocked.figures()})
                if tick.best:
                    self._save_state(state, best=True)
                due = tick.save or tick.snapshot or tick.end or self._preempted(tick.step)
                if due and tick.images_seen > start:  # a run that ends where it went on from has nothing new
                    self._save(tick)
                end = tick.end or end
            end = self._reason(end, state.images_seen)
        except UserError as error:
            self.faults += getattr(error, "faults", ())
            try:
                self._write_faults(state.images_seen)  # what made the run end is in the report
            except OSError as e:
                log.warning("the newest rows of the quarantine report could not be written: %s", e)
            raise
        finally:
            with self._failing_together():
                self.saver.close()
        return self._outcome(state, end, metrics)

    def _validated(self, ticks: Iterator[Any]) -> Iterator[Any]:
        """The ticks with what validation gave, where the science selects by it."""
        from pathray.train.supervised import SupervisedTick, supervised

        selection, validate = self.parts.selection, self.parts.validate
        if selection is not None and validate is not None:
            yield from supervised(ticks, validate, selection, self.device)
            return
        for tick in ticks:
            yield SupervisedTick(**vars(tick))

    def _outcome(self, state: Any, end: str, metrics: dict[str, float]) -> dict[str, Any]:
        outcome: dict[str, Any] = {}
        if self.failed is None:
            with self._failing_together():
                outcome = self._finish(state, end, metrics)
        return outcome if self.failed is None else {"fatal": _fatal(self.failed)}

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """What storage refuses (a full disk …) ends the run on all ranks together, at the next poll.

        A restarted group would train up to the next save only to meet it again. Only rank 0 is asked whether to stop,
        and only rank 0 saves: on the others the error ends the rank, and so the group.
        """
        try:
            yield
        except OSError as e:
            error = e if isinstance(e, UserError) else storage_error(e, self.job.run_dir, writing=True)
            if self.rank != 0:
                raise error from e
            self.failed = self.failed or error

    def _resume(self, state: Any) -> None:
        """Load the checkpoint that rank 0 chose, if there is one; UserError when it belongs to another run."""
        from pathray.data import crashes
        from pathray.store import checkpoint
        from pathray.store.committed import read_committed
        from ray_jobs.train import quarantine

        crashes.note_crashes(self.job.run_dir)
        self.device.gather_objects(None)  # every machine has told
        path, excluded = self.device.broadcast_object((self._chosen(), self._excluded()) if self.rank == 0 else None)
        self.parts.reader = crashes.Guarded(self.parts.reader, self.job.run_dir, self.plan, excluded)
        if path is not None:
            found = read_committed(path)
            check_resumable(found, self.parts.identity, self.job.resume_changes)
            with naming(path):
                state.load(*checkpoint.load(path))
            if found.meta.get("fit_id") != self.job.fit_id:
                state.health.reset_marks(state.images_seen)  # whoever starts a run again has seen to its data
        self.faults_since, self.fresh = state.images_seen, path is None
        if self.log is not None:
            self.log.cut_back(state.images_seen)
            quarantine.sweep(self.store, state.images_seen)
            if path is None and self.job.start_metrics:
                self.log.append({"images_seen": 0, **self.job.start_metrics})

    def _chosen(self) -> str | None:
        """The path of the checkpoint to go on from."""
        found = chosen(self.job.run_dir, self.parts.tag, self.job.resume, self.job.fit_id)
        return None if found is None else found.path

    def _excluded(self) -> Any:
        """What has ended decoding processes of this run before, and is read no more."""
        from pathray.data.crashes import excluded, noted

        found = excluded(noted(self.job.run_dir), self.plan.units_hash)
        for name in (str(self.plan.sources.column(0)[source]) for source in sorted(found.sources)):
            log.warning("%s is skipped: decoding it crashed the process repeatedly", name)
        if found.rows:
            log.warning("%d units are skipped: decoding them crashed the process twice", len(found.rows))
        return found

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        from pathray.data.stream import Lookup
        from ray_jobs.train.rank_stream import Share, stream

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

    def _beat(self, images_seen: int) -> None:
        """How far the run is, for whoever waits: metrics may be hours apart. Not on object storage, where a write would
        hold up the step."""
        if self.rank != 0 or not self.store.local or time.monotonic() - self.beat_at < BEAT_EVERY_S:
            return
        self.beat_at = time.monotonic()
        with self._failing_together():
            self._write_beat(images_seen)

    def _write_beat(self, images_seen: int, **more: str) -> None:
        beat = {"images_seen": images_seen, "time": time.time(), **more}
        self.store.write_bytes(BEAT, json.dumps(beat).encode())

    def _log_metrics(self, tick: Any, metrics: dict[str, float]) -> None:
        if self.log is not None:
            passes = tick.images_seen / self.plan.rows
            row = {"images_seen": tick.images_seen, "step": tick.step, "anchor_passes_seen": passes, **metrics}
            with self._failing_together():
                self.log.append(row)

    def _stop_requested(self) -> bool:
        """Polled by the loop on rank 0 only; the answer travels with the gradients.

        A save that failed in the background ends the run here, and not only when the next one is due.
        """
        with self._failing_together():
            self.saver.check()
        if self.failed is not None:
            return True
        try:
            return bool(self.store.exists(STOP))
        except StorageError as e:  # asked again at the next poll: a bucket out of reach for a while ends no run
            log.warning("whether to stop cannot be asked at present: %s", e)
            return False

    def _save_is_due(self) -> bool:
        """Polled like the wish to stop: whether the newest checkpoint is `latest_minutes` old."""
        minutes = self.parts.latest_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _preempted(self, step: int) -> bool:
        """Whether a node is about to be taken away, agreed over all ranks: save now, go on. A barrier: on cadence."""
        every = self.job.scaling.preemption_check_steps
        if every <= 0 or step % every:
            return False
        import ray.train

        return ray.train.get_preemption_info() is not None

    def _baseline(self, state: Any) -> None:
        """A snapshot of what the training begins with, when it begins and evaluations want one."""
        tuning = self.parts.tuning
        if tuning is not None and tuning.run_baseline_at_zero and self.fresh:
            self._save_state(state, snapshot=0)

    def _reason(self, end: str, images_seen: int) -> str:
        """``early_stopped`` for a stop that an evaluator asked for."""
        if end != "stopped":
            return end
        asked: Any = None
        with suppress(OSError, ValueError):  # whatever else stands in it was written by hand
            asked = json.loads(self.store.read_bytes(STOP)) if self.rank == 0 else None
        if isinstance(asked, dict) and asked.get("reason") == EARLY_STOPPED:
            log.warning("early stopping: ended at %s images", f"{images_seen:,}")
            return EARLY_STOPPED
        return end

    def _save(self, tick: Any) -> None:
        """A checkpoint; under a name of its own where a snapshot is due, and of the last state for its evaluators."""
        every, last = self.parts.settings.snapshot_every, tick.end == "budget" and self.parts.tuning is not None
        if not (tick.snapshot or last):
            self._save_state(tick.state)
            return
        number = tick.images_seen // every if every else 0
        self._save_state(tick.state, snapshot=number if tick.snapshot else number + 1)

    def _save_state(self, state: Any, snapshot: int | None = None, best: bool = False) -> None:
        """This rank's quarantine part, and a checkpoint (rank 0, written while training goes on).

        The checkpoint is begun when every rank's part is on storage: a rank that dies before takes the others back to
        the checkpoint before, from where the rows come again; one that dies later has lost none. `snapshot`: its number
        in the order of evaluations; `best`: of all that validation has seen. The time that a snapshot takes from the
        training is measured.
        """
        began = self.saved_at = time.monotonic()
        tensors = state.tensors()  # on every rank: on XLA it is a graph, which all hosts run
        with self._failing_together():
            self._write_faults(state.images_seen)
        self.device.gather_objects(None)
        with self._failing_together():
            if self.log is not None and self.failed is None:
                self.log.flush()
                self._save_checkpoint(state, tensors, snapshot, best)
        if snapshot is not None:
            self._wait_for_evaluation(state.images_seen)
            self.blocked.add(time.monotonic() - began)

    def _save_checkpoint(self, state: Any, tensors: dict[str, Any], snapshot: int | None, best: bool = False) -> None:
        from pathray.store import checkpoint

        tag, parts = self.parts.tag, self.parts
        rolling = f"{tag}-best" if best else f"{tag}-latest"
        name = rolling if snapshot is None else f"{tag}-img{state.images_seen}"
        meta = {
            **state.meta(),
            "identity": parts.identity,
            "placement": parts.placement,
            "science": parts.science,
            "fit_id": self.job.fit_id,
        }
        if snapshot is None:
            self.saver.save(self.root, name, tensors, meta)
        else:
            if parts.tuning is not None:  # without it nobody removes them
                meta["tune_index"] = snapshot
            self.saver.save(self.root, name, tensors, meta, self._encoder(state))
        checkpoint.prune(self.root, rolling, parts.keep_last_n)

    def _encoder(self, state: Any) -> Any:
        """What writes the recipe's encoder beside a snapshot's tensors, from the same copies."""
        parts = self.parts
        if parts.encoder is None:
            return None
        encoder = parts.encoder(parts.recipe)
        names = encoder.names_in(parts.recipe.modules)
        facts = self._provenance(state)

        def write(directory: Any, copies: dict[str, Any]) -> None:
            own = {name: copies[f"model.{inside}"] for name, inside in names.items()}
            encoder.write(directory, ENCODER, own, facts)

        return write

    def _wait_for_evaluation(self, images_seen: int) -> None:
        """With `tuning.execution.mode` sync: until the snapshot has been judged, and on all ranks."""
        tuning = self.parts.tuning
        if tuning is None or tuning.execution.mode != "sync":
            return
        from pathray.evaluation.results import judged, watched

        with self._failing_together():
            self.saver.wait()
        while True:
            over = True
            if self.rank == 0 and self.failed is None:
                try:
                    over = judged(self.store.url, images_seen) or self.store.exists(STOP)
                    if not over and not watched(self.store.url):
                        log.warning("nobody evaluates the snapshot at %s images: training goes on", f"{images_seen:,}")
                        over = True
                except StorageError as e:
                    log.warning("training goes on without knowing of its evaluation: %s", e)
                    over = True
            if self.device.broadcast_object(over):
                return
            time.sleep(SYNC_POLL_S)

    def _provenance(self, state: Any) -> dict[str, Any]:
        parts = self.parts
        return {"images_seen": state.images_seen, "identity": parts.identity["hash"], "tag": parts.tag}

    def _write_faults(self, images_seen: int) -> None:
        """This rank's unreadable units since the last save, as a parquet part named by the positions it covers."""
        if self.faults:
            from ray_jobs.train.quarantine import part_name, to_parquet

            end = max(images_seen, 1 + max(f.position for f in self.faults))
            part = to_parquet(self.faults, self.plan.sources)
            self.store.write_bytes(part_name(self.faults_since, end, self.rank), part)
        self.faults_since, self.faults = images_seen, []

    def _finish(self, state: Any, end: str, metrics: dict[str, float]) -> dict[str, Any]:
        """At the end rank 0 exports the artifact, unless the run is only interrupted; the rest of the outcome is where
        things lie."""
        artifact, last = None, self.saver.last
        if self.beat_at:
            self._write_beat(state.images_seen, end=end)
        checkpoint = last.path if last is not None else (self._chosen() if self.rank == 0 else None)
        reached = state.images_seen
        if end in ENDED and self.rank == 0:
            self._take_the_best(state)
            artifact = self.store.join(ENCODER)
            self.parts.export(self.parts.recipe, artifact, self._provenance(state))
        return {
            "end": end,
            "images_seen": reached,
            "metrics": metrics,
            "artifact": artifact,
            "checkpoint": checkpoint,
        }

    def _take_the_best(self, state: Any) -> None:
        """Rank 0 alone, when training is over: the state that validation found best, where the science selects one. Not
        simply the newest: a run that went on from before an older best may have found it elsewhere since."""
        from pathray.store import checkpoint
        from pathray.store.committed import list_committed
        from pathray.train.supervised import selected_of

        if self.parts.selection is None:
            return
        kept = list_committed(self.root, f"{self.parts.tag}-best")
        at = selected_of(state).best_images_seen
        if kept:
            best = max(kept, key=lambda c: (int(c.meta["images_seen"]) == at, int(c.meta["images_seen"])))
            state.load(*checkpoint.load(best.path))
