"""The reader: one plan row → the bag of a slide, as stored, with its positions and its truth.

Everything random follows from the position. Not here: which slide is at which position (pathray.data.order), the store
(mil.store), arithmetic (mil.recipe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mil.plan import truth_of
from mil.store.reading import Store
from pathray.data.order import rng
from pathray.data.plan import Plan
from pathray.errors import UnreadableUnit, UserError


class BagReader:
    """Reads bags of the rows of `plan.sources`. `most` tiles of a slide are drawn anew at each position; None: all."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(self, plan: Plan, seed: int, most: int | None = None) -> None:
        self.seed, self.most = seed, most
        self.store = Store(str(plan.meta["store"]))
        self.slides = plan.sources["slide"].to_pylist()
        self.names = [str(name) for name in plan.sources["name"].to_pylist()]
        self.truth = truth_of(plan, np.arange(plan.sources.num_rows)).astype(np.float32)

    def whole(self) -> BagReader:
        """The same reader without drawing tiles, for evaluation."""
        out = object.__new__(BagReader)
        out.__dict__.update(self.__dict__, most=None)
        return out

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """features float16 or float32 [N, D] · coords float32 [N, 2], in sides of a tile, NaN if unknown · truth
        float32 [] or [2] (time, event) · source int64. UnreadableUnit if the store's file cannot be read."""
        source = int(unit["source"])
        slide = int(self.slides[source])
        try:
            features, coords = self.store.features(slide), self.store.positions(slide)
            if self.most is not None and len(features) > self.most:
                draw = rng(self.seed, "bag", position, attempt)
                kept = np.sort(draw.choice(len(features), self.most, replace=False))
                features, coords = features[kept], None if coords is None else coords[kept]
            features = np.array(features)  # out of the file, whose pages may fail
        except (OSError, UserError, ValueError) as e:
            raise UnreadableUnit("unreadable", self.names[source], str(e)) from e
        if coords is None:
            coords = np.full((len(features), 2), np.nan, np.float32)
        return {"features": features, "coords": coords, "truth": self.truth[source], "source": np.int64(source)}

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Bags padded to the longest: features [B, N, D], mask bool [B, N], coords [B, N, 2], truth and source [B]."""
        most = max(len(unit["features"]) for unit in units)
        out: dict[str, Any] = {name: np.stack([unit[name] for unit in units]) for name in ("truth", "source")}
        out["mask"] = np.stack([np.arange(most) < len(unit["features"]) for unit in units])
        for name in ("features", "coords"):
            out[name] = np.stack([_padded(unit[name], most) for unit in units])
        return out


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    if len(values) == length:
        return values
    out = np.zeros((length, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out
