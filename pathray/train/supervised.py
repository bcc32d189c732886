"""Validation, selection of the best checkpoint and early stopping, around the loop's ticks.

    for tick in supervise(run(recipe, batches, settings, device=device, state=state), validate, selection, device):
        if tick.best: …save…

The selection so far is stored in `state.notes`, so a resumed run continues with the same best value and patience.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from pathray.device import Device
from pathray.errors import UserError
from pathray.train.budget import due
from pathray.train.loop import Tick
from pathray.train.state import TrainState

log = logging.getLogger(__name__)

NOTES = "selection"
Validate = Callable[[TrainState], Mapping[str, float]]


@dataclass(frozen=True)
class Selection:
    """How to select the best checkpoint, and when to stop early.

    every: images between two validations (one epoch is `resolve_cadence({"epochs": 1}, …)`); a run also validates at
    its end. patience: this many validations without an improvement of more than `min_delta` end the run, after at least
    `min_evals` validations; None means never. A NaN metric counts as no improvement.
    """

    metric: str
    mode: str
    every: int
    patience: int | None = None
    min_evals: int = 1
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise UserError("mode must be min or max", key="mode", found=self.mode, expected="min or max")
        if self.every <= 0:
            raise UserError("every must be > 0", key="every", found=self.every, expected="images > 0")
        if self.patience is not None and self.patience < 1:
            raise UserError("patience must be >= 1", key="patience", found=self.patience, expected=">= 1 validations")


@dataclass
class Selected:
    """The best value so far (None before the first finite one), its position, and the validations since.

    `at` is the position of the last validation, `metric` the name of the metric in `best` ("" before the first).
    """

    best: float | None = None
    best_images_seen: int = 0
    at: int = -1
    evals: int = 0
    since_best: int = 0
    metric: str = ""

    def update(self, value: float, images_seen: int, selection: Selection) -> bool:
        """Record one validation; returns whether it is the best so far."""
        self.evals, self.at = self.evals + 1, images_seen
        sign = 1.0 if selection.mode == "max" else -1.0
        better = math.isfinite(value) and (self.best is None or sign * (value - self.best) > selection.min_delta)
        if better:
            self.best, self.best_images_seen, self.since_best = value, images_seen, 0
        else:
            self.since_best += 1
        return better

    def is_exhausted(self, selection: Selection) -> bool:
        """Whether patience has run out."""
        patience = selection.patience
        return patience is not None and self.evals >= selection.min_evals and self.since_best >= patience


@dataclass
class SupervisedTick(Tick):
    """A tick with the metrics of `validation`, if it ran, and whether it is the `best` so far. `end` may also be
    ``early_stop``."""

    validation: dict[str, float] | None = None
    best: bool = False


def supervise(
    ticks: Iterator[Tick], validate: Validate, selection: Selection, device: Device
) -> Iterator[SupervisedTick]:
    """Validate at the cadence, mark the best tick, stop early.

    `validate(state)` runs on every rank (it may divide the rows among ranks), in evaluation mode without gradients, and
    returns metrics; rank 0's value decides for all. The modules' training flags are restored afterwards. Validation may
    use random numbers, since training reseeds. UserError if the selection's metric is not returned.
    """
    for tick in ticks:
        out = SupervisedTick(**{name: getattr(tick, name) for name in Tick.__dataclass_fields__})
        seen, step = tick.images_seen, tick.state.settings.global_batch
        last = selection_state(tick.state)
        known = last.at == seen and last.metric == selection.metric  # a run that resumes at its end
        if not known and (tick.end == "budget" or due(seen - step, seen, selection.every)):
            _judge(out, validate, selection, device)
        yield out
        if out.end is not None:
            close = getattr(ticks, "close", None)
            if close is not None:
                close()
            return


def selection_state(state: TrainState) -> Selected:
    """The selection so far, from a run's state."""
    return Selected(**state.notes.get(NOTES, {}))


def has_ended_early(state: TrainState, selection: Selection) -> bool:
    """Whether patience had run out before, so that a resumed run must not continue."""
    selected = selection_state(state)
    return selected.metric in ("", selection.metric) and selected.is_exhausted(selection)


def _judge(tick: SupervisedTick, validate: Validate, selection: Selection, device: Device) -> None:
    """Validate, and record the result on the tick and in the state."""
    state = tick.state
    tick.validation = device.broadcast_object(_evaluate(state, validate))
    if selection.metric not in tick.validation:
        found = sorted(tick.validation)
        message = "validation does not return the selection metric"
        raise UserError(message, key="metric", found=found, expected=selection.metric)
    selected, value = selection_state(state), tick.validation[selection.metric]
    if selected.metric not in ("", selection.metric):
        log.info("the best checkpoint is now selected by %s instead of %s", selection.metric, selected.metric)
        selected = Selected()
    selected.metric = selection.metric
    tick.best = selected.update(value, tick.images_seen, selection)
    state.notes[NOTES] = asdict(selected)
    note = "best so far" if tick.best else f"best {selected.best} at {selected.best_images_seen}"
    log.info("validation at %d images: %s %.6g (%s)", tick.images_seen, selection.metric, value, note)
    if tick.end is None and selected.is_exhausted(selection):
        log.info("%s did not improve in %d validations: stopping early", selection.metric, selected.since_best)
        tick.end = "early_stop"
        if tick.metrics is None and tick.flush is not None:
            tick.metrics = tick.flush()


def _evaluate(state: TrainState, validate: Validate) -> dict[str, float]:
    modules: list[tuple[nn.Module, bool]] = [(m, m.training) for m in state.recipe.modules.modules()]
    state.recipe.modules.eval()
    try:
        with torch.no_grad():
            return {name: float(value) for name, value in validate(state).items()}
    finally:
        for module, training in modules:
            module.training = training
