"""A dry run of a regression: two training batches and two validation batches in this process; writes nothing.

It reads real images, runs the real network forward and backward and evaluates, so that faults show at once and not
after an hour in a queue. Not here: cluster and workers; the checks of table and split, which run before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from pathray.data.plan import Plan
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import stream_batches
from pathray.device import Device
from pathray.errors import UserError
from pathray.train.loop import run
from pathray.train.state import TrainState
from regression.assembly import assemble
from regression.config import RunConfig
from regression.evaluate import metrics, predict
from regression.features import uses_cache
from regression.plan import rows_of, targets
from regression.recipe import RegressionRecipe

BATCHES = 2


@dataclass(frozen=True)
class Rehearsal:
    """Losses of the updates, images per second (with the first update), and the validation's metrics, if any."""

    losses: list[float]
    images_per_s: float
    validation: dict[str, float]


def rehearse(config: RunConfig, plan: Plan) -> Rehearsal:
    """Run two updates with the resolved `config`, in this process as the only worker, and two validation batches.

    Raises what training would: UserError for unreadable images, and for a loss that is not finite.
    """
    train = config.train
    batch = int(train.global_batch or 0)
    if uses_cache(config):  # there are no features yet: use augmented images, which cost the same
        config = replace(config, augment=replace(config.augment, geometry=True))
    config = replace(config, train=replace(train, images=BATCHES * batch), logging=replace(config.logging, log_every=1))
    parts = assemble(config, plan, 1)
    device = Device.of(config.scaling.accelerator)
    settings, lookup = parts.settings, Lookup(plan, parts.order)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        rows = rank_rows(lookup, start, settings.total_images, batch, 0, 1, settings.micro_batch)
        for one in stream_batches(rows, parts.reader, lookup, parts.decode):
            yield {key: value for key, value in one.items() if key != "faults"}

    state, losses, begun = TrainState(parts.recipe, settings, device), [], time.perf_counter()
    for tick in run(parts.recipe, batches, settings, device=device, state=state):
        if tick.metrics is not None:
            losses.append(float(tick.metrics["loss"]))
    seconds = time.perf_counter() - begun
    if not all(map(math.isfinite, losses)):
        raise UserError("the loss is not finite", key="train.lr", found=losses, expected="numbers")
    rows = rows_of(plan, "val")[: BATCHES * config.eval.batch_size]
    found: dict[str, float] = {}
    if rows.size >= 2:
        predicted = predict(cast(RegressionRecipe, parts.recipe), plan, rows, device, config.eval.batch_size)
        found = metrics(predicted, targets(plan)[rows], config.eval)
    return Rehearsal(losses, BATCHES * batch / seconds, found)
