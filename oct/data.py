"""The reader: one plan row → a volume on the grid, with the draws for its augmentation and its masks.

Everything random follows from the position. Not here: DICOM (oct.dicom), which row is at which position
(pathray.data.order), replacement of unreadable units (pathray.data.units), normalisation and augmentation, which run on
the device (oct.augment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oct.augment import count_draws
from oct.cache import VolumeCache
from oct.dicom.resample import CENTRE, read_volume
from oct.indexing.manifest import Spacing
from oct.masks import MaskSampler
from oct.plan import locations, manifest_spacing
from oct.volume import Grid
from pathray.data.order import rng
from pathray.data.plan import Plan

if TYPE_CHECKING:
    from oct.config import RunConfig


@dataclass
class VolumeReader:
    """Reads volumes; `paths`, `states` and `spacings` (what the manifest says) are the files' by `source`.

    Where a volume exceeds the grid, a random part of it is read, or its centre with `centred`.
    """

    seed: int
    paths: Sequence[str]
    states: Sequence[str]
    spacings: Sequence[Spacing]
    grid: Grid
    masks: MaskSampler
    draws: int
    cache: VolumeCache = VolumeCache()
    centred: bool = False
    benign_reasons: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: RunConfig, plan: Plan) -> VolumeReader:
        """A reader for the volumes of a plan that `oct.plan.build_plan` wrote."""
        data, rows = config.data, plan.sources.to_pylist()
        return cls(
            seed=data.seed,
            paths=locations(plan),
            states=[str(row["state"]) for row in rows],
            spacings=[manifest_spacing(row) for row in rows],
            grid=data.grid,
            masks=MaskSampler.of(config),
            draws=count_draws(config),
            cache=VolumeCache.of(data.cache_folder, data.cache_gb),
        )

    def without_crops(self) -> VolumeReader:
        """The same volumes, always their centres: for validation."""
        return replace(self, centred=True)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """image int16 `[D, H, W]` · inside int32 `[3, 2]` · draws float32 `[N]` uniforms · context_<i>, target_<i>
        int32: the masks' tokens.

        Raises UnreadableUnit and UnreachableUnit, as oct.dicom.resample.read_volume does.
        """
        source = int(unit["source"])
        path, state = self.paths[source], self.states[source]
        z, y, x = CENTRE if self.centred else rng(self.seed, "crop", position, attempt).random(3).tolist()
        sampled, _ = read_volume(
            path,
            self.grid,
            (z, y, x),
            self.spacings[source],
            read=lambda name: self.cache.read(name, state),
        )
        return {
            "image": sampled.image,
            "inside": sampled.inside,
            "draws": rng(self.seed, "augment", position, attempt).random(self.draws, np.float32),
            **self.masks.sample(rng(self.seed, "masks", position, attempt)),
        }

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: every array of the volumes with a leading axis."""
        return {name: np.stack([unit[name] for unit in units]) for name in units[0]}
