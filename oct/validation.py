"""The loss on held-out volumes while a run trains: the same volumes and masks each time, without augmentation.

Ranks share the volumes out and add up their losses. It changes no weights, and nothing is selected by it: a JEPA's loss
is no measure of its features (it falls when they collapse). Not here: evaluators (pathray.evaluation).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

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
from pathray.train.budget import due
from pathray.train.loop import Tick

log = logging.getLogger(__name__)


def chosen_sources(plan: Plan, config: ValidationConfig) -> list[int]:
    """The first `volumes` held-out sources of the plan."""
    return held_out_sources(plan)[: config.volumes]


class HeldOutLoss:
    """Looks at every tick, and gives ``val/loss`` when its cadence is due. A pathray.train.assembly.Watch.

    `sources` are rows of the plan's sources; the reader gets them as units of their own, at their place among them.
    Decoded volumes are kept: this rank's share.
    """

    def __init__(
        self, config: RunConfig, recipe: OctRecipe, reader: UnitReader, sources: Sequence[int], device: Device
    ) -> None:
        self.config, self.recipe, self.reader, self.device = config, recipe, reader, device
        self.sources = list(sources)
        self.kept: list[tuple[dict[str, Any], Any]] | None = None

    def observe(self, tick: Tick) -> dict[str, float]:
        step = tick.state.settings.global_batch
        if not (due(tick.images_seen - step, tick.images_seen, self.config.validation.every) or tick.end == "budget"):
            return {}
        return {"val/loss": self.measure(tick.state.settings.micro_batch)}

    def measure(self, micro: int) -> float:
        """The mean loss over the held-out volumes of all ranks, `micro` of a rank at once; NaN when none can be read.
        Call it on all ranks."""
        if self.kept is None:
            self.kept = list(self._batches(micro))
        training = {name: module.training for name, module in self.recipe.modules.named_modules()}
        self.recipe.modules.eval()
        total = [0.0, 0.0]
        for batch, weight in self.kept:
            losses = self.recipe.validation_losses(self.device.to_device(batch)).cpu().double().numpy()
            total = [total[0] + float((losses * weight).sum()), total[1] + float(weight.sum())]
            self.device.mark_step()
        for name, module in self.recipe.modules.named_modules():
            module.training = training[name]
        sums = np.sum(self.device.gather_objects(total) if self.device.reduces else [total], axis=0)
        return float(sums[0] / sums[1]) if sums[1] else float("nan")

    def _batches(self, micro: int) -> Iterator[tuple[dict[str, Any], Any]]:
        """This rank's share in micro-batches of equal size, with a weight per volume: 0 for what fills up the last."""
        world, rank = self.device.world_size, self.device.rank
        rounds = -(-len(self.sources) // (world * micro))
        for number in range(rounds):
            places = [(number * micro + i) * world + rank for i in range(micro)]
            units = [self._read(place) if place < len(self.sources) else None for place in places]
            weight = np.array([unit is not None for unit in units], np.float64)
            yield self.reader.collate([self._blank() if unit is None else unit for unit in units]), weight

    def _read(self, place: int) -> dict[str, Any] | None:
        source = self.sources[place]
        try:
            return self.reader.read({"row": np.int64(-1), "source": np.int32(source)}, place, 0)
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
