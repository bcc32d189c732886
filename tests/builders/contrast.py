"""SimCLR's loss of one image in float64 NumPy: the oracle for adios.loss and adios.recipe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def by_hand(all_a: npt.NDArray[Any], all_b: npt.NDArray[Any], image: int, temperature: float) -> float:
    """L of one image and one view: both directions over the 2G − 1 others. all_a, all_b `[G, D]`."""
    vectors = np.concatenate([all_a, all_b])
    losses = []
    for own, other in ((image, len(all_a) + image), (len(all_a) + image, image)):
        similar = vectors @ vectors[own] / temperature
        losses.append(-similar[other] + np.log(sum(math.exp(s) for i, s in enumerate(similar) if i != own)))
    return float(sum(losses) / 2)
