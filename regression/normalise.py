"""Targets to zero mean and unit deviation by the training rows alone, and back again for whatever is reported."""

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
    """z = (y − mean) / std per gene, `[K]` each. `fit` it on training rows, keep it with the model."""

    mean: Floats
    std: Floats
    genes: tuple[str, ...]

    @classmethod
    def fit(cls, targets: Floats, genes: Sequence[str]) -> Normaliser:
        """From training targets `[N, K]`. UserError naming a gene that is the same in all of them."""
        mean, std = targets.mean(axis=0), targets.std(axis=0)
        flat = np.flatnonzero(np.ptp(targets, axis=0) == 0)
        if flat.size:
            found = [genes[k] for k in flat[:8]]
            message = "genes that do not vary over the training rows cannot be learned: leave them out"
            raise UserError(message, key=found[0], found=found, expected="values that vary")
        return cls(mean, std, tuple(genes))

    @classmethod
    def none(cls, genes: Sequence[str]) -> Normaliser:
        """Leaves targets as they are."""
        return cls(np.zeros(len(genes)), np.ones(len(genes)), tuple(genes))

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Normaliser:
        """What `plain` gave."""
        return cls(np.array(saved["mean"], np.float64), np.array(saved["std"], np.float64), tuple(saved["genes"]))

    def plain(self) -> dict[str, Any]:
        """As JSON has it; floats keep every bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "genes": list(self.genes)}

    def apply(self, targets: npt.ArrayLike) -> Floats:
        """`[…, K]` → normalised."""
        z: Floats = (np.asarray(targets, np.float64) - self.mean) / self.std
        return z

    def invert(self, normalised: npt.ArrayLike) -> Floats:
        """`[…, K]` → in the targets' own units."""
        y: Floats = np.asarray(normalised, np.float64) * self.std + self.mean
        return y
