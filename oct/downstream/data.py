"""The reader of a fine-tuning: one plan row → a volume on the encoder's grid, its truth, the draws for augmentation.

Everything random follows from the position. Not here: normalisation and augmentation, which run on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from oct.augment import NOISE
from oct.cache import VolumeCache
from oct.dicom.resample import CENTRE
from oct.downstream.config import DownstreamConfig
from oct.downstream.plan import classes_of, scale_of
from oct.downstream.preprocess import Preprocessing
from oct.indexing.manifest import Spacing
from oct.plan import locations, manifest_spacing
from pathray.data.order import rng
from pathray.data.plan import Plan


@dataclass
class LabelledReader:
    """Reads labelled volumes; all sequences are by `source`. `truth`: class numbers (int64), or standardised numbers
    (float32). A random part of what exceeds the grid is read, or its centre with `centred`."""

    seed: int
    given: Preprocessing
    paths: Sequence[str]
    states: Sequence[str]
    spacings: Sequence[Spacing]
    truth: npt.NDArray[Any]
    cache: VolumeCache = VolumeCache()
    centred: bool = False
    benign_reasons: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: DownstreamConfig, plan: Plan, given: Preprocessing) -> LabelledReader:
        """A reader for the volumes of a plan that `oct.downstream.plan.build_plan` wrote."""
        data, rows = config.data, plan.sources.to_pylist()
        (mean, std), values = scale_of(plan), np.array([row["truth"] for row in rows])
        truth = values.astype(np.int64) if classes_of(plan) else ((values - mean) / std).astype(np.float32)
        return cls(
            data.seed,
            given,
            locations(plan),
            [str(row["state"]) for row in rows],
            [manifest_spacing(row) for row in rows],
            truth,
            VolumeCache.of(data.cache_dir, data.cache_gb),
        )

    def without_crops(self) -> LabelledReader:
        """The same volumes, always their centres."""
        return replace(self, centred=True)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """image int16 `[D, H, W]` · inside int32 `[3, 2]` · draws float32 `[N]` · truth. UnreadableUnit,
        UnreachableUnit."""
        source = int(unit["source"])
        state = self.states[source]
        at = tuple(rng(self.seed, "crop", position, attempt).random(3).tolist())
        sampled = self.given.read(
            self.paths[source],
            self.spacings[source],
            lambda name: self.cache.read(name, state),
            CENTRE if self.centred else (at[0], at[1], at[2]),
        )
        draws = rng(self.seed, "augment", position, attempt).random(NOISE.stop, np.float32)
        return {"image": sampled.image, "inside": sampled.inside, "draws": draws, "truth": self.truth[source]}

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: every array of the volumes with a leading axis."""
        return {name: np.stack([unit[name] for unit in units]) for name in units[0]}
