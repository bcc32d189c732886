"""Finds pairs of slides whose mean features are suspiciously near to each other, in blocks of rows.

A pair is suspicious by the distances around it, never by a fixed number: slides of one hospital are near to each other,
but about equally near to many, while a copy is far nearer than the next slide. Not here: whether a suspicion is right
(mil.splits.bag_overlap).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 8
BLOCK = 512  # slides whose distances to all others are in memory at once
RATIO = 0.5  # of the distance to the last neighbour; independent slides in 1,000 dimensions have ratios above 0.8
TINY = 0.05  # of the cohort's typical distance, for bags with more copies than NEIGHBOURS
FEW = 64  # up to this many slides, each slide's nearest is suspicious too: the ratio of few distances says little
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def suspicious_pairs(means: Floats, groups: npt.NDArray[np.str_]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of rows of `means` `[S, D]` that are of different `groups` `[S]` and that may be copies.

    d_i1 ≤ d_i2 ≤ … are the Euclidean distances of slide i to its nearest NEIGHBOURS slides of other groups. A neighbour
    j is suspicious if d_ij < RATIO · d_i8, or d_ij < TINY · median of all d_i8; the measure is local, so that a dense
    cluster of similar slides raises no suspicion and a copy inside it does. Memory is BLOCK · S numbers.
    """
    found: set[tuple[int, int]] = set()
    rows, near, distance = _nearest(means, groups)
    if not len(rows):
        return []
    last = distance[:, -1]
    limit = np.maximum(RATIO * last, TINY * np.median(last))
    marked = distance < limit[:, None] if distance.shape[1] > 1 else np.zeros(distance.shape, np.bool_)
    if len(means) <= FEW:
        marked[:, 0] = True
    for i, k in zip(*np.nonzero(marked), strict=True):
        a, b = int(rows[i]), int(near[i, k])
        found.add((min(a, b), max(a, b)))
    return sorted(found)


def _nearest(means: Floats, groups: npt.NDArray[np.str_]) -> tuple[Ints, Ints, Floats]:
    """Slides `[n]` that have neighbours, these `[n, K]`, nearest first, and the distances `[n, K]`."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    others = len(groups) - counts[group]
    most = int(min(NEIGHBOURS, others.min())) if len(others) else 0
    if most < 1:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0))
    parts = list(_blocks(np.asarray(means, np.float32), np.asarray(group, np.int64), most))
    near, distance = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return np.arange(len(means)), near.astype(np.int64), distance


def _blocks(means: npt.NDArray[np.float32], group: Ints, most: int) -> Iterator[tuple[Ints, Floats]]:
    """Neighbours and distances of each block of slides. The search is in float32, the distances in float64."""
    centred = means - means.mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = np.einsum("sd,sd->s", centred, centred)
    for start in range(0, len(means), BLOCK):
        own = slice(start, min(start + BLOCK, len(means)))
        table = squares[None, :] - 2 * (centred[own] @ centred.T)  # |b|² − 2ab orders like the distance
        table[group[own][:, None] == group[None, :]] = np.inf
        near = np.argpartition(table, most - 1, axis=1)[:, :most]
        gaps = means[own].astype(np.float64)[:, None, :] - means[near]
        distance = np.sqrt(np.einsum("bkd,bkd->bk", gaps, gaps))
        order = np.argsort(distance, axis=1, kind="stable")
        yield np.take_along_axis(near, order, 1), np.take_along_axis(distance, order, 1)
