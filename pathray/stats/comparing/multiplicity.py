"""p-values of several tests, adjusted for their number: Holm and Benjamini-Hochberg. No torch.

Not here: the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted to bound the chance of any false finding (Holm 1979): max over j ≤ i of (m − j + 1) p_(j).

    At most 1. None (a test without an answer) stays None and does not count. ValueError for what is not in [0, 1].
    """
    return _adjust(p_values, lambda p: np.maximum.accumulate(p * np.arange(p.size, 0, -1)))


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted to bound the share of false findings (Benjamini & Hochberg 1995): min over j ≥ i of m p_(j)/j.

    For tests that are independent or positively dependent. None and errors as in `holm`.
    """
    return _adjust(p_values, lambda p: np.minimum.accumulate((p * p.size / np.arange(1, p.size + 1))[::-1])[::-1])


def _adjust(p_values: Sequence[float | None], of: Callable[[Floats], Floats]) -> list[float | None]:
    """`of` gets the known p-values in rising order and gives the adjusted ones."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[i] for i in known], np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be in [0, 1], found {p[~((p >= 0) & (p <= 1))][0]}")
    out: list[float | None] = [None] * len(p_values)
    order = np.argsort(p, kind="stable")
    for place, adjusted in zip(order, np.minimum(of(p[order]), 1.0), strict=True):
        out[known[place]] = float(adjusted)
    return out
