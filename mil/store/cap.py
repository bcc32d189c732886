"""Chooses which tiles of a large slide are kept: at random, or spread over a grid so that no region is lost.

`spatial_stratified` gives each occupied cell of a grid a share of the K tiles proportional to √n, the square root of
its tiles, never more than it has, and at least one where K allows it. Not here: reading and writing bags.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng

STRATIFIED, RANDOM = "spatial_stratified", "random"
STRATEGIES = (STRATIFIED, RANDOM)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def kept_rows(
    rows: int,
    most: int | None,
    *,
    strategy: str,
    coords: npt.NDArray[np.number] | None,
    grid: int,
    seed: int,
    name: str,
) -> Ints:
    """The rows `[min(rows, most)]` of a bag that stay, ascending, from the seed and the slide's name alone.

    `coords` `[rows, 2]` are needed for `spatial_stratified`; a bag without any is sampled at random.
    """
    if most is None or rows <= most:
        return np.arange(rows)
    draw = rng(seed, "cap", int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    if strategy == RANDOM or coords is None:
        return np.sort(draw.choice(rows, most, replace=False))
    cell = cells_of(coords, grid)
    members = np.argsort(cell, kind="stable")
    counts = np.bincount(cell)
    occupied = np.flatnonzero(counts)
    shares = allocate(counts[occupied], most)
    ends = np.cumsum(counts[occupied])
    chosen = [
        members[end - count + draw.choice(count, share, replace=False)]
        for end, count, share in zip(ends, counts[occupied], shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def cells_of(coords: npt.NDArray[np.number], grid: int) -> Ints:
    """The cell `[N]` of each position in a grid of `grid` x `grid` over the bag's extent."""
    xy = np.asarray(coords, np.float64)
    low, high = xy.min(axis=0), xy.max(axis=0)
    place = np.minimum((xy - low) / np.where(high > low, high - low, 1) * grid, grid - 1).astype(np.int64)
    return np.asarray(place[:, 1] * grid + place[:, 0], np.int64)


def allocate(counts: Ints, total: int) -> Ints:
    """How many of each cell's `counts` `[C]` are kept: whole numbers that add up to `total`.

    The ideal of a cell is the least of its tiles and λ√n, at least 1 where `total` allows one for each cell, with λ
    such that ideals add up to `total` (water-filling). Fractions go to the largest remainders, so no cell differs from
    its ideal by one or more.
    """
    n = counts.astype(np.float64)
    assert 0 < total <= n.sum()
    floor = 1.0 if total >= len(counts) else 0.0
    ideal = _water(n, float(total), floor)
    whole = np.floor(ideal + 1e-9).astype(np.int64)
    left = total - int(whole.sum())
    order = np.argsort(-(ideal - whole), kind="stable")
    whole[order[:left]] += 1
    return whole


def _water(n: Floats, total: float, floor: float) -> Floats:
    """min(n, max(floor, λ√n)) with the λ whose sum is `total`: between two corners of the sum it is linear in λ."""
    root = np.sqrt(n)
    corners = np.unique(np.concatenate([[0.0], floor / root, root]))  # a cell leaves its floor, or is full

    def filled(level: float) -> Floats:
        return np.minimum(n, np.maximum(floor, level * root))

    sums = np.array([filled(level).sum() for level in corners])
    above = int(np.searchsorted(sums, total))
    if above == 0 or sums[above] == total:
        return filled(float(corners[above]))
    low, high = corners[above - 1], corners[above]
    share = (total - sums[above - 1]) / (sums[above] - sums[above - 1])
    return filled(float(low + share * (high - low)))
