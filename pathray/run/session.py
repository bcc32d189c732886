"""The whole life of a run on one rank: resume, train, log, save, stop, export. Knows no science and no Ray.

What several ranks must agree on (which checkpoint, when to stop) is decided by rank 0 and broadcast, or travels with
the gradients. Not here: which checkpoint (pathray.run.resume), what a save consists of (pathray.run.saves).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from pathray.data import crashes
from pathray.data.plan import Plan
from pathray.data.share import Share
from pathray.device import Device
from pathray.errors import UserError
from pathray.run import hangs, memory, quarantine, resume, stop
from pathray.run.batches import Batches, local
from pathray.run.export import export
from pathray.run.failure import SharedFailure
from pathray.run.fence import Fence, fence_for_rank, write_guarded
from pathray.run.layout import CHECKPOINTS, PROGRESS, STOP
from pathray.run.log import run_log
from pathray.run.outcome import BUDGET, EARLY_STOP, ENDED, RETRY, Outcome, RunSettings
from pathray.run.saves import Saves
from pathray.run.stop_poll import StopPoll
from pathray.run.tick_log import TickLog
from pathray.store import checkpoint
from pathray.store.committed import Committed
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage
from pathray.train.assembly import Assembly
from pathray.train.collapse import FeaturesCollapsed
from pathray.train.loop import run
from pathray.train.state import TrainState
from pathray.train.supervised import SupervisedTick, has_ended_early, supervise

log = logging.getLogger(__name__)


def train(
    assembly: Assembly,
    plan: Plan,
    run_dir: str,
    device: Device,
    batches: Batches = local,
    *,
    settings: RunSettings | None = None,
) -> Outcome:
    """Train to the budget, to a STOP in `run_dir` or to an early stop, resuming what the folder holds; call on every
    rank.

    `batches(assembly, plan, share)` gives this rank's decoded micro-batches (`local`: decoded in this process). Leaves
    metrics.jsonl, checkpoints, quarantine.parquet, log.txt and, unless interrupted, the exported artifact. Raises
    UserError for what the user can mend; RunFailed and TrainingStopped reach all ranks together.
    """
    settings, store = settings or RunSettings(), Storage.of(str(run_dir))
    keeps_log = device.rank == 0 and settings.keep_log
    with fence_for_rank(store.url, device.rank, settings.owner) as fence:
        if device.rank == 0 and not settings.keep_stop:
            through_outages(lambda: store.remove(STOP), START)
            through_outages(lambda: store.remove(PROGRESS), START)
        try:
            with run_log(store) if keeps_log else nullcontext():
                return Session(assembly, plan, store, device, batches, settings, fence).train()
        except Exception:
            if fence is not None and fence.is_held():
                quarantine.merge_after_failure(store)
            raise
        finally:
            crashes.end(store.url)  # an error is no crash of a decoder


class Session:
    """One rank's run: its parts, and what is done at each tick."""

    def __init__(
        self,
        assembly: Assembly,
        plan: Plan,
        store: Storage,
        device: Device,
        batches: Batches,
        settings: RunSettings,
        fence: Fence | None = None,
    ) -> None:
        self.plan, self.store, self.device, self.batches = plan, store, device, batches
        fit_id, token = device.broadcast_object((settings.fit_id, fence.token if fence is not None else ""))
        self.settings = replace(settings, fit_id=fit_id)
        self.parts = memory.with_changes(assembly, store, self.settings, device, lambda: self._notes(assembly.tag))
        self.on_smaller_units = assembly.smaller is not None and self.parts.smaller is None
        self.guard: Any = Fence.of(store.url, token).check if token else lambda: None
        self.faults = quarantine.Faults(store, plan.sources, device.rank, self.guard)
        self.failure = SharedFailure(device.rank, store.url)
        name = self.parts.passes_name
        self.tick_log = TickLog(store, device, plan, self.parts.watch, self.failure, name, self.guard)
        metrics = self.tick_log.metrics
        self.saves = Saves(self.parts, store, device, self.failure, self.faults, metrics, fit_id, self.guard)
        self.watch = hangs.watch_steps(self.parts.settings, store, device.rank, fit_id, self.guard)
        self.stop_poll: StopPoll | None = None
        self.fresh = True

    def train(self) -> Outcome:
        """From the newest checkpoint, or from the beginning, to the end."""
        state = TrainState(self.parts.recipe, self.parts.settings, self.device)
        self._resume(state)
        memory.check_units(state.notes, self.on_smaller_units, self.store.url)
        if self.on_smaller_units:
            state.notes[memory.SMALLER_UNITS] = 1
        self.stop_poll = StopPoll(self.store) if self.device.rank == 0 else None
        try:
            end, metrics = self._consume(state)
        except UserError as error:
            self.faults.keep(error, state.images_seen)
            if isinstance(error, FeaturesCollapsed):
                self._name_last_good(error)
            raise
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            end, metrics = RETRY, {}
            fit_id = self.settings.fit_id
            changes = memory.changes_after(error, self.store, fit_id, self.parts, self.device, self.guard)
        finally:
            self._close()
        self.failure.check()
        with self.failure.keep_error():
            outcome = self._finish(state, end, metrics) if end != RETRY else self._retry(changes)
        self.failure.check()
        return outcome

    def _close(self) -> None:
        """Until everything is on storage, and nobody looks for STOP or at steps any more."""
        self.watch.close()
        self.saves.close()
        self.tick_log.close()
        if self.stop_poll is not None:
            self.stop_poll.close()

    # --- start ---

    def _resume(self, state: TrainState) -> None:
        """Load the checkpoint that rank 0 chose, if there is one; UserError when it belongs to another run.

        Waits for storage: a rank that died may be started again while it is away.
        """
        rank0, url = self.device.rank == 0, self.store.url
        through_outages(lambda: crashes.note_crashes(url), START)
        self.device.gather_objects(None)  # every machine has told
        excluded = through_outages(lambda: resume.read_exclusions(url, self.plan), START) if rank0 else None
        known: Any = (self._find_checkpoint(), excluded) if rank0 else None
        path, excluded = self.device.broadcast_object(known)
        reader: Any = crashes.Guarded(self.parts.reader, url, self.plan, excluded)
        self.parts.reader = reader
        if path is not None:
            through_outages(lambda: resume.load(state, path, self.parts.identity, self.settings), START)
        self.faults.since, self.fresh = state.images_seen, path is None
        if rank0:
            hangs.log_earlier(self.store, state.step)
        first = self.settings.start_metrics if self.fresh else {}
        through_outages(lambda: self.tick_log.start(state.images_seen, first), START)
        if rank0:
            through_outages(lambda: quarantine.sweep(self.store, state.images_seen), START)

    def _find_checkpoint(self) -> str | None:
        found = through_outages(lambda: self._newest(self.parts.tag), "the run")
        return None if found is None else found.path

    def _newest(self, tag: str) -> Committed | None:
        return resume.find_checkpoint(self.store.url, tag, self.settings.resume, self.settings.fit_id)

    def _notes(self, tag: str) -> dict[str, Any]:
        """The notes of the checkpoint that is resumed."""
        found = self._newest(tag)
        return {} if found is None else dict(found.meta.get("notes") or {})

    # --- ticks ---

    def _consume(self, state: TrainState) -> tuple[str, dict[str, float]]:
        """Take the ticks to the last one; how the run ended, and its last metrics."""
        end, metrics, start = BUDGET, dict[str, float](), state.images_seen
        ticks = self._ticks(state)
        if self.parts.selection is not None and has_ended_early(state, self.parts.selection):  # interrupted after that
            end, ticks = EARLY_STOP, iter(())
        tuning = self.parts.tuning
        if tuning is not None and tuning.run_baseline_at_zero and self.fresh:
            self.saves.save(state, snapshot=0)
        for tick in ticks:
            metrics = tick.metrics or metrics
            self.tick_log.write(tick, self.saves.blocked)
            if tick.best:
                self.saves.save(state, best=True)
            due = tick.save or tick.snapshot or tick.end or self._is_preempted(tick.step)
            if due and tick.images_seen > start:  # a run that ends where it resumed has nothing new
                self.saves.save_tick(tick)
            end = tick.end or end
        return stop.name_end(end, self.store, self.device.rank, state.images_seen), metrics

    def _ticks(self, state: TrainState) -> Iterator[SupervisedTick]:
        """The loop's ticks, with what validation gave where the science selects by it."""
        parts, device = self.parts, self.device
        stopping, saving = self._is_stop_requested, self.saves.is_due
        ticks = run(
            parts.recipe,
            self._batches_from,
            parts.settings,
            device=device,
            state=state,
            stop=stopping,
            save=saving,
            watch=self.watch.start(),
        )
        if parts.selection is not None and parts.validate is not None:
            yield from supervise(ticks, parts.validate, parts.selection, device)
            return
        for tick in ticks:
            yield SupervisedTick(**vars(tick))

    def _batches_from(self, start: int) -> Iterator[dict[str, Any]]:
        """This rank's batches from a position on; their unreadable units are kept for the next save."""
        settings, device = self.parts.settings, self.device
        share = Share(
            start, settings.total_images, settings.global_batch, settings.micro_batch, device.rank, device.world_size
        )
        for batch in self.batches(self.parts, self.plan, share):
            self.faults.found += batch.pop("faults")
            yield batch

    def _is_preempted(self, step: int) -> bool:
        """Whether this machine is about to be taken away, agreed over all ranks: save now, and continue."""
        asked, every = self.settings.preemption, self.settings.preemption_every_steps
        return asked is not None and every > 0 and step % every == 0 and asked()

    def _is_stop_requested(self) -> bool:
        """Polled by the loop on rank 0 only. A save or a row that failed in the background ends the run here, and not
        only when the next one is due. A file on a disk is looked for at once: a run then ends at its very next step."""
        with self.failure.keep_error():
            self.saves.saver.check()
        self.tick_log.check()
        assert self.stop_poll is not None
        asked = self.stop_poll.look_now() if self.store.local else self.stop_poll.is_requested()
        return self.failure.error is not None or asked

    # --- end ---

    def _finish(self, state: TrainState, end: str, metrics: dict[str, float]) -> Outcome:
        """The outcome, with what rank 0 exports unless the run is only interrupted."""
        rank0, last, seen, artifact = self.device.rank == 0, self.saves.saver.last, state.images_seen, None
        self.tick_log.end(seen, end)
        path = last.path if last is not None else (self._find_checkpoint() if rank0 else None)
        if end in ENDED and rank0:
            artifact = write_guarded(self.guard, lambda: export(self.parts, state, self.store), "the export")
        report = "the report of unreadable units"
        unreadable = write_guarded(self.guard, lambda: quarantine.merge(self.store), report) if rank0 else 0
        return Outcome(end, seen, metrics, path, artifact, unreadable)

    def _name_last_good(self, error: FeaturesCollapsed) -> None:
        """On rank 0 the error names the newest checkpoint from before the collapse, if one is still there."""
        if self.device.rank:
            return
        with self.failure.keep_error():
            self.saves.saver.wait()
        root, most = self.store.join(CHECKPOINTS), error.images_seen_good
        good = through_outages(lambda: checkpoint.latest(root, self.parts.tag, most), "the last good checkpoint")
        error.name_checkpoint(None if good is None else good.path)

    def _retry(self, changes: dict[str, int]) -> Outcome:
        return Outcome(RETRY, self.faults.since, {}, self._find_checkpoint(), None, changes=changes)
