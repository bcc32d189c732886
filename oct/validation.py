"""The loss on held-out volumes while a run trains: the same volumes and masks each time, without augmentation.

Ranks share the volumes out and add up their losses. It changes no weights, and nothing is selected by it: a JEPA's loss
is no measure of its features (it falls when they collapse). Not here: evaluators (pathray.evaluation).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from oct.augment import count_draws
from oct.config import RunConfig, ValidationConfig
from oct.masks import MaskSampler
from oct.plan import held_out_sources
from oct.recipe import OctRecipe
from pathray.data.order import rng
from pathray.data.plan import Plan
from pathray.data.units import UnitReader
from pathray.device import Device
from pathray.errors import UnreadableUnit
from pathray.store.outages import read_through_outages
from pathray.train.budget import due
from pathray.train.loop import Tick

log = logging.getLogger(__name__)


def chosen_sources(plan: Plan, config: ValidationConfig, seed: int) -> list[int]:
    """At most `volumes` of the plan's held-out sources, drawn by the seed from all devices: the same in every start."""
    found = held_out_sources(plan)
    drawn = rng(seed, "held-out", 0).permutation(len(found))[: config.volumes]
    return sorted(found[i] for i in drawn)


class HeldOutLoss:
    """Looks at every tick, and gives ``val/loss`` when its cadence is due. A pathray.train.assembly.Watch.

    `sources` are rows of the plan's sources; the reader gets them as units of their own, at their place among them.
    Decoded volumes are kept: this rank's share. On XLA it is also measured after the first step of a start, so that its
    graph is not compiled in the middle of the run.
    """

    def __init__(
        self, config: RunConfig, recipe: OctRecipe, reader: UnitReader, sources: Sequence[int], device: Device
    ) -> None:
        self.config, self.recipe, self.reader, self.device = config, recipe, reader, device
        self.sources = list(sources)
        self.kept: list[dict[str, Any]] | None = None

    def observe(self, tick: Tick) -> dict[str, float]:
        settings = tick.state.settings
        before = tick.images_seen - settings.global_batch
        first = self.kept is None and self.device.compile_count() > 0
        is_due = due(before, tick.images_seen, self.config.validation.every) or tick.end == "budget"
        if not (first or is_due):
            return {}
        found = self.measure(settings.micro_batch, settings.precision)
        return {"val/loss": found} if is_due else {}

    def measure(self, micro: int, precision: str = "fp32") -> float:
        """The mean loss over the held-out volumes of all ranks, `micro` of a rank at once; NaN when none can be read.
        Call it on all ranks."""
        if self.kept is None:
            self.kept = list(self._batches(micro))
        training = {name: module.training for name, module in self.recipe.modules.named_modules()}
        self.recipe.modules.eval()
        total = [0.0, 0.0]
        for batch in self.kept:
            sums = self._sums(batch, precision)
            total = [before + now for before, now in zip(total, sums, strict=True)]
        for name, module in self.recipe.modules.named_modules():
            module.training = training[name]
        loss, weight = np.sum(self.device.gather_objects(total) if self.device.reduces else [total], axis=0)
        return float(loss / weight) if weight else float("nan")

    def _sums(self, batch: dict[str, Any], precision: str) -> list[float]:
        """Σ loss · weight and Σ weight of a micro-batch; on XLA, where it is one batch of all hosts, over all of it."""
        placed = self.device.to_device(batch)
        weight = placed.pop("weight")
        with torch.no_grad(), self.device.autocast(precision):
            losses = self.recipe.validation_losses(placed).float()
        sums = torch.stack([(losses * weight).sum(), weight.sum()])
        self.device.mark_step()
        return [float(value) for value in sums.cpu()]

    def _batches(self, micro: int) -> Iterator[dict[str, Any]]:
        """This rank's share in micro-batches of equal size, with a weight per volume: 0 for what fills up the last."""
        world, rank = self.device.world_size, self.device.rank
        rounds = -(-len(self.sources) // (world * micro))
        for number in range(rounds):
            places = [(number * micro + i) * world + rank for i in range(micro)]
            units = [self._read(place) if place < len(self.sources) else None for place in places]
            batch = self.reader.collate([self._blank() if unit is None else unit for unit in units])
            yield {**batch, "weight": np.array([unit is not None for unit in units], np.float32)}

    def _read(self, place: int) -> dict[str, Any] | None:
        """The volume, waiting for storage that is away; None, and a warning, for one that cannot be read."""
        unit = {"row": np.int64(-1), "source": np.int32(self.sources[place])}

        try:
            return read_through_outages(lambda: self.reader.read(unit, place, 0), "the storage of held-out volumes")
        except UnreadableUnit as e:
            log.warning("a held-out volume is left out: %s", e)
            return None

    def _blank(self) -> dict[str, Any]:
        """A volume of nothing, with masks."""
        size = self.config.data.image_size
        masks = MaskSampler.of(self.config).sample(rng(self.config.data.seed, "masks", 0))
        box = np.array([[0, n] for n in size], np.int32)
        draws = np.zeros(count_draws(self.config), np.float32)
        return {"image": np.zeros(size, np.int16), "inside": box, "draws": draws, **masks}
