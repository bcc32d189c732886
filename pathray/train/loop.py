"""The one training loop: an iterator of ticks over a recipe and a stream of micro-batches. No Ray, no files.

A step, phase by phase: every micro-batch under autocast, ``loss.sum.backward(inputs=params[phase])`` (what a phase does
not train gets no gradient by construction); one all-reduce of Σ gradient, Σ loss, Σ weight and flags; divide, clip,
optimizer step with a device-side ok flag. Nothing waits for the device but the poll, log and save cadences.

Exactness: torch's generator is reseeded from (seed, step, rank, micro, phase) and the data from positions, so a run
that is stopped and resumed anywhere ends with the same bits (docs/exactness.md). Saving, evaluating and validating are
for the consumer of the ticks (pathray.train.supervised, ray_jobs).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathray.device import Device
from pathray.train.batchnorm import RunningStatistics
from pathray.train.budget import due
from pathray.train.positions import Positions
from pathray.train.recipe import Micro, Progress, Recipe, TrainingStopped
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.state import TrainState
from pathray.train.step_watch import StepWatch
from pathray.train.sync import gradient_sync
from pathray.train.window import Window

__all__ = ["Batches", "LoopSettings", "PhaseOptim", "Tick", "TrainState", "TrainingStopped", "run"]

COUNTS = ("corrupt", "units")  # of a batch: for the loop, not for the recipe
Batches = Callable[[int], Iterator[dict[str, Any]]]


@dataclass
class Tick:
    """What the loop hands out after each step. `step` and `images_seen` count what is done.

    `metrics` is set on the log cadence, at the end, and whenever a step was bad. `save` and `snapshot` say that their
    cadence is due. `end` is None until the run ends, then ``budget`` or ``stopped``; the last tick has it. `step_s`
    and `wait_s` are the host's time of this step, and the part of it spent waiting for data. Whoever ends the run
    early calls `flush` (on all ranks) for the metrics since the last row. `digests` come with the metrics of a window:
    what its shards have trained on (pathray.train.positions).
    """

    step: int
    images_seen: int
    metrics: dict[str, float] | None
    save: bool
    snapshot: bool
    end: str | None
    state: TrainState
    step_s: float = 0.0
    wait_s: float = 0.0
    flush: Callable[[], dict[str, float]] | None = None
    digests: dict[str, str] = field(default_factory=dict)


def run(
    recipe: Recipe,
    batches: Batches,
    settings: LoopSettings,
    *,
    device: Device,
    state: TrainState | None = None,
    stop: Callable[[], bool] | None = None,
    save: Callable[[], bool] | None = None,
    watch: StepWatch | None = None,
) -> Iterator[Tick]:
    """Train from `state` (fresh without one) to the budget; one tick per step.

    batches(start) yields this rank's micro-batches from position `start` on, in order: arrays plus ``position``
    `[micro]` int64, which is asserted, and optionally ``corrupt``, how many units in it stand in for unreadable ones.
    Where a position holds a group (pathray.data.groups), ``units`` says how many units there are in all; budgets and
    cadences count positions, unreadable units are judged by the share of units.
    stop() is asked on rank 0 on the poll cadence; the answer reaches all ranks with the gradients, and the run ends at
    that step with a tick whose `end` is ``stopped``. save() asks likewise for a checkpoint, for cadences in time: the
    step's tick has `save` on every rank. Both should answer at once: they are in the way of the step. `watch` is told
    when a step begins and ends, and when it waits for data.
    Raises TrainingStopped, on all ranks at the same step, after too many bad steps or unreadable units.
    """
    loop = _Loop(recipe, settings, device, state or TrainState(recipe, settings, device), (stop, save), watch)
    return loop.ticks(batches)


class _Loop:
    def __init__(
        self,
        recipe: Recipe,
        settings: LoopSettings,
        device: Device,
        state: TrainState,
        wishes: tuple[Callable[[], bool] | None, ...],
        watch: StepWatch | None = None,
    ) -> None:
        assert state.recipe is recipe, "the state is of another recipe"
        self.recipe, self.settings, self.device, self.state = recipe, settings, device, state
        self.wishes = wishes if device.rank == 0 else (None,) * len(wishes)
        self.micros = settings.micros_per_step(device.world_size)
        self.params = {phase: [p for _, p in params] for phase, params in recipe.params.items()}
        self.syncs = {phase: gradient_sync(settings.grad_sync, p, device) for phase, p in self.params.items()}
        self.statistics = RunningStatistics(recipe.modules, device)
        self.window = Window(device)
        self.positions = Positions(device, state.images_seen)
        self.watch = watch or StepWatch(0.0, lambda hang: None)
        self.rates: dict[str, float] = {}
        self.corrupt, self.asked, self.wait_s = 0, [False] * len(wishes), 0.0
        self.units: int | None = None  # of this rank's groups in a step; None where a position is one unit
        if settings.deterministic:
            device.deterministic()

    def ticks(self, batches: Batches) -> Iterator[Tick]:
        state, end = self.state, None
        if state.images_seen >= self.settings.total_images:
            yield Tick(state.step, state.images_seen, None, False, False, "budget", state)
            return
        stream, start = batches(state.images_seen), state.images_seen
        try:
            while end is None:
                began = time.perf_counter()
                with self.watch.step(state.step + 1, self.recipe.phases(state.step)):
                    self._step(stream)
                    if state.images_seen == start + self.settings.global_batch:  # the next row may be hours away
                        self.positions.check(state.images_seen)
                    tick = self._tick()
                yielded = time.perf_counter()
                tick.step_s, tick.wait_s, end = yielded - began, self.wait_s, tick.end
                yield tick
                self.window.outside_s += time.perf_counter() - yielded
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    def _step(self, stream: Iterator[dict[str, Any]]) -> None:
        settings, state = self.settings, self.state
        progress = Progress(state.step, settings.total_steps, settings.global_batch)
        phases = self.recipe.phases(progress.step)
        assert phases and len(set(phases)) == len(phases), f"step {progress.step} has phases {phases}"
        self.asked = self._poll_wishes(progress.step + 1)
        micros: Iterable[Micro] = self._micros(stream, progress)
        if len(phases) > 1:  # the later phases want them again
            micros = list(micros)
        self.statistics.begin()
        fine, totals = self._phase(phases[0], micros, progress)
        for phase in phases[1:]:
            ok, _ = self._phase(phase, micros, progress)
            fine = fine * ok
        self.statistics.end(fine)
        step = self.device.scalar(progress.step, torch.int64)
        state.health.update(step, fine, corrupt=totals[2], asked=totals[3:5], units=totals[5:])
        self.recipe.after_step(progress)
        self.device.mark_step()
        state.images_seen += settings.global_batch
        self.window.step(settings.global_batch, self.wait_s)

    def _micros(self, stream: Iterator[dict[str, Any]], progress: Progress) -> Iterator[Micro]:
        """This rank's micro-batches of the step, prepared on the device; their positions are asserted."""
        settings, share = self.settings, self.micros * self.settings.micro_batch
        first = progress.images_seen + self.device.rank * share
        self.corrupt, self.units, self.wait_s = 0, None, 0.0
        for i in range(self.micros):
            began = time.perf_counter()
            with self.watch.pause():
                batch = next(stream, None)
            self.wait_s += time.perf_counter() - began
            assert batch is not None, f"the stream ended at step {progress.step}, before the budget"
            expected = np.arange(first + i * settings.micro_batch, first + (i + 1) * settings.micro_batch)
            assert np.array_equal(batch["position"], expected), (progress.step, i, batch["position"], expected)
            self.corrupt += int(batch.get("corrupt", 0))
            if "units" in batch:
                self.units = (self.units or 0) + int(batch["units"])
            self.device.seed(settings.seed, progress.step, self.device.rank, i, "prepare")
            placed = self.device.to_device({k: v for k, v in batch.items() if k not in COUNTS})
            self.positions.add(placed["position"])
            with torch.no_grad():
                micro = self.recipe.prepare(placed, progress)
            yield micro

    def _phase(self, phase: str, micros: Iterable[Micro], progress: Progress) -> tuple[Tensor, Tensor]:
        """Accumulate and sum over ranks, then update. Whether the phase was good (1 or 0), and the sums over ranks of
        loss, weight, units replaced, the wishes to stop and to save, and, of groups, units."""
        settings, sync, scale = self.settings, self.syncs[phase], self.state.scales[phase]
        sync.begin()
        sums: Tensor | None = None
        for i, micro in enumerate(micros):
            if i == self.micros - 1:
                sync.last_micro()
            self.device.seed(settings.seed, progress.step, self.device.rank, i, phase)
            with self.device.autocast(settings.precision):
                loss = self.recipe.loss(phase, micro, progress)
            total = loss.sum.float() if loss.sum.dtype.itemsize < 4 else loss.sum
            scale.apply(total).backward(inputs=self.params[phase])  # type: ignore[no-untyped-call]
            pair = torch.stack([total.detach().reshape(()), loss.weight.detach().reshape(()).to(total.dtype)])
            sums = pair if sums is None else sums + pair
            self.window.micro(loss.metrics, loss.weight)
            self.device.mark_step()
        assert sums is not None
        units = [] if self.units is None else [self.units]
        flags = self.device.flags([self.corrupt, *self.asked, *units]).to(sums.dtype)
        gradient, totals = sync.reduce(torch.cat([sums, flags]))
        return self._update(phase, gradient, totals, progress), totals

    def _update(self, phase: str, gradient: Tensor, totals: Tensor, progress: Progress) -> Tensor:
        """Mean gradient, clip, optimizer step where everything is finite. 1 or 0: whether it was."""
        optim, optimizer, scale = self.settings.optim[phase], self.state.optimizers[phase], self.state.scales[phase]
        mean, weight = totals[0] / totals[1], totals[1]
        gradient.mul_(1 / (weight * scale.scale.to(weight.dtype)))
        norm = torch.linalg.vector_norm(gradient)
        if optim.clip is not None:
            gradient.mul_((optim.clip / (norm + 1e-6)).clamp(max=1.0))
        finite, sound = torch.isfinite(norm), torch.isfinite(mean) & (weight > 0)
        ok = (finite & sound).to(torch.float32)
        rates = {"lr": optim.lr, "weight_decay": optim.weight_decay}
        values = {name: schedule(progress.step, progress.total_steps) for name, schedule in rates.items()}
        self.rates |= {f"{name}/{phase}": value for name, value in values.items()}
        optimizer.set(**values)
        optimizer.step(ok, gradient)
        scale.update(finite)
        self.window.phase(phase, mean, norm, ok)
        return torch.maximum(ok, scale.can_shrink() * sound)

    def _poll_wishes(self, step: int) -> list[bool]:
        poll = step % self.settings.poll_every_steps == 0
        with self.watch.pause():  # they may look at storage
            return [poll and wish is not None and bool(wish()) for wish in self.wishes]

    def _tick(self) -> Tick:
        """What is due at the end of this step; the only place where the host waits for the device."""
        settings, state = self.settings, self.state
        seen = state.images_seen
        before = seen - settings.global_batch
        log, save, snapshot = (
            due(before, seen, every) for every in (settings.log_every, settings.save_every, settings.snapshot_every)
        )
        tick = Tick(state.step, seen, None, save, snapshot, None, state)
        tick.flush = partial(self._metrics, tick.digests)
        last, poll = seen >= settings.total_images, state.step % settings.poll_every_steps == 0
        if not (log or save or snapshot or last or poll):
            return tick
        report = state.health.read()
        state.health.check(report, settings, step=state.step, seen=seen)
        tick.save = state.health.take_save_request(report) or save
        tick.end = "budget" if last else "stopped" if report.stop else None
        news = state.health.bad_step_metrics(report)
        if log or tick.end:
            tick.metrics = tick.flush() | news
        elif news:
            tick.metrics = news
        return tick

    def _metrics(self, digests: dict[str, str]) -> dict[str, float]:
        """The figures since the last row; the digests of what was trained on go to `digests`."""
        digests |= self.positions.read(self.state.images_seen)
        phases = tuple(self.recipe.params)
        out = self.window.read(phases)
        for name, short in (("lr", "lr"), ("weight_decay", "wd")):
            values = {phase: self.rates[f"{name}/{phase}"] for phase in phases if f"{name}/{phase}" in self.rates}
            out |= {short: next(iter(values.values()))}
            if len(phases) > 1:
                out |= {f"{short}/{phase}": value for phase, value in values.items()}
        if self.device.kind == "xla":
            out["compilations"] = float(self.device.compile_count())
        return out | self.device.memory() | self.recipe.signals()
