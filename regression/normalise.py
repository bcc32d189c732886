"""Scales targets to zero mean and unit deviation over the training rows, and predictions back to their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Normaliser:
    """z = (y − mean) / std per gene, `[K]` each. `fit` it on training rows, and store it with the model."""

    mean: Floats
    std: Floats
    genes: tuple[str, ...]

    @classmethod
    def fit(cls, targets: Floats, genes: Sequence[str]) -> Normaliser:
        """Fit to training targets `[N, K]`. UserError naming a gene that does not vary over them."""
        mean, std = targets.mean(axis=0), targets.std(axis=0)
        flat = np.flatnonzero(np.ptp(targets, axis=0) == 0)
        if flat.size:
            found = [genes[k] for k in flat[:8]]
            message = "genes do not vary over the training rows: leave them out"
            raise UserError(message, key=found[0], found=found, expected="values that vary")
        return cls(mean, std, tuple(genes))

    @classmethod
    def none(cls, genes: Sequence[str]) -> Normaliser:
        """A normaliser that does not change targets."""
        return cls(np.zeros(len(genes)), np.ones(len(genes)), tuple(genes))

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Normaliser:
        """The normaliser that `plain` returned as JSON values."""
        return cls(np.array(saved["mean"], np.float64), np.array(saved["std"], np.float64), tuple(saved["genes"]))

    def plain(self) -> dict[str, Any]:
        """JSON values; floats keep every bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "genes": list(self.genes)}

    def apply(self, targets: npt.ArrayLike) -> Floats:
        """`[…, K]` → normalised."""
        z: Floats = (np.asarray(targets, np.float64) - self.mean) / self.std
        return z

    def invert(self, normalised: npt.ArrayLike) -> Floats:
        """`[…, K]`, normalised → in the targets' own units."""
        y: Floats = np.asarray(normalised, np.float64) * self.std + self.mean
        return y
