"""The reader: one plan row → an image, uint8, with its normalised target and the draws for its augmentation.

Everything random follows from the position. Not here: which row is at which position (pathray.data.order),
replacement of unreadable units (pathray.data.units), normalisation and augmentation of pixels (regression.recipe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.wsi.resize import resize
from regression.plan import normaliser, targets

DRAWS = 9  # uniforms per image: three for its rotation and flip, six for its stain

Pixels = npt.NDArray[np.uint8]


class ImageReader:
    """Reads training images. `paths` and normalised `targets` `[N, K]` are by `source`."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(self, seed: int, size: int, paths: Sequence[str], targets: npt.NDArray[np.float32]) -> None:
        self.seed, self.size, self.paths, self.targets = seed, size, list(paths), targets

    @classmethod
    def of(cls, plan: Plan, seed: int, size: int) -> ImageReader:
        """A reader for the units of a plan."""
        scaled = normaliser(plan).apply(targets(plan)).astype(np.float32)
        return cls(seed, size, plan.sources["path"].to_pylist(), scaled)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """image uint8 [S, S, 3] · target float32 [K] · draws float32 [DRAWS] · source int64. Raises UnreadableUnit."""
        source = int(unit["source"])
        return {
            "image": read_square(self.paths[source], self.size),
            "target": self.targets[source],
            "draws": rng(self.seed, "augment", position, attempt).random(DRAWS, np.float32),
            "source": np.int64(source),
        }

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _stack(units)


class FeatureReader:
    """Reads the features of a frozen backbone, `[N, D]` by `source`, instead of images; `paths` are for errors."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(
        self, features: npt.NDArray[np.float32], paths: Sequence[str], targets: npt.NDArray[np.float32]
    ) -> None:
        self.features, self.paths, self.targets = features, list(paths), targets
        self.lost: npt.NDArray[np.bool_] = np.asarray(~np.isfinite(features).all(axis=1))

    @classmethod
    def of(cls, plan: Plan, features: npt.NDArray[np.float32]) -> FeatureReader:
        """A reader for the units of a plan."""
        scaled = normaliser(plan).apply(targets(plan)).astype(np.float32)
        return cls(features, plan.sources["path"].to_pylist(), scaled)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """features float32 [D] · target float32 [K] · source int64. Raises UnreadableUnit if there are no features."""
        source = int(unit["source"])
        if self.lost[source]:
            raise UnreadableUnit("unreadable", self.paths[source], "it could not be read to compute features")
        return {"features": self.features[source], "target": self.targets[source], "source": np.int64(source)}

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _stack(units)


def read_square(path: str, size: int) -> Pixels:
    """An image `[size, size, 3]`, resized if it has another size. UnreadableUnit: missing, decode, shape."""
    try:
        pixels = read_image(path)
    except MissingFile as e:
        raise UnreadableUnit("missing", path) from e
    except UserError as e:
        raise UnreadableUnit("unsupported", path, str(e)) from e
    height, width = pixels.shape[:2]
    if height != width:
        raise UnreadableUnit("shape", path, f"{width} x {height} pixels, expected a square")
    return resize(pixels, size, size)


def _stack(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.stack([unit[name] for unit in units]) for name in units[0]}
