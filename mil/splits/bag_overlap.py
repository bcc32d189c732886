"""Says which share of a bag's tiles is in another bag too, whatever the order of rows, noise or the tiles left out.

Not here: which bags are compared (mil.splits.nearest_means).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE = 128  # tiles of the smaller bag that are looked for in the larger one
NEARER = 0.25  # a tile is found if the other bag has one this much nearer than the next tile of its own bag
ROUNDING = 2.0**-8  # relative distance of re-encoded features: float16 rounds to 2^-11, bfloat16 to 2^-8
FEW = 8  # tiles; a bag with fewer that differ has no typical distance
SHARE, SHARE_OF_FEW = 0.1, 0.9  # of the tiles that have to be found
ROWS = 4096  # of the larger bag at once
Floats = npt.NDArray[np.floating[Any]]


def shared_tiles(a: Floats, b: Floats) -> tuple[float, bool]:
    """The share of tiles of the smaller bag that are in the other one, and whether that makes them copies.

    `a` `[N, D]` and `b` `[M, D]` are features. A tile x is found if its distance to the other bag is at most NEARER
    times that to the nearest other tile of its own bag: a measure that each bag brings along, in any encoder. Other
    tissue of one hospital is about as far as the next tile of the slide. Noise of a quarter of that distance passes.
    Tiles that their own bag repeats (glass) are not counted. Two random caps of 16,384 of 10^5 tiles share 16% of them,
    hence SHARE. Bags of few tiles have to agree to rounding, nearly all tiles.
    """
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    rows = np.unique(np.linspace(0, len(small) - 1, SAMPLE).astype(np.int64))
    sample = np.asarray(small[rows], np.float64)
    own = _distances(sample, small, rows)
    other = _distances(sample, large)
    size = np.linalg.norm(sample, axis=1)
    distinct = own > ROUNDING * size
    if distinct.sum() < FEW:
        share = float((other <= ROUNDING * size).mean())
        return share, share >= SHARE_OF_FEW
    share = float((other <= NEARER * own)[distinct].mean())
    return share, share >= SHARE


def _distances(sample: npt.NDArray[np.float64], bag: Floats, own: npt.NDArray[np.int64] | None = None) -> Floats:
    """The distance `[n]` of each tile of the `sample` `[n, D]` to the nearest of the bag; `own` `[n]` are its rows in
    that bag, which do not count. Candidates are found in float32, their distance is exact."""
    centre = sample.mean(axis=0).astype(np.float32)
    sought = sample.astype(np.float32) - centre
    best = np.full(len(sample), np.inf)
    for start in range(0, len(bag), ROWS):
        block = np.asarray(bag[start : start + ROWS], np.float32) - centre
        table = np.einsum("md,md->m", block, block)[None, :] - 2 * (sought @ block.T)
        if own is not None:
            inside = np.flatnonzero((own >= start) & (own < start + len(block)))
            table[inside, own[inside] - start] = np.inf
        nearest = table.argmin(axis=1)
        gaps = np.linalg.norm(sample - np.asarray(bag[start + nearest], np.float64), axis=1)
        gaps[~np.isfinite(table.min(axis=1))] = np.inf
        best = np.minimum(best, gaps)
    return best
