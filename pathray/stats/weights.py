"""Row weights of resamples, and sums over them that say where they are not defined. No torch.

Weights `[R, N]` say how often each of N rows counts in each of R resamples. Not here: the draws
(pathray.stats.bootstrap), the scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK_BYTES = 2 << 20  # so that a block's weights and what is made of them fit into the processor's cache


def row_weights(
    codes: Ints, count: int, *, resamples: int, seed: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Floats]:
    """The resamples in blocks `[r, N]`: how often each row's cluster (`codes` `[N]`, 0 … count−1) was drawn."""
    size = max(1, block_bytes // (8 * max(codes.size, 1)))
    own = count == codes.size and bool((codes == np.arange(count)).all())
    for drawn in cluster_counts(count, resamples, seed):
        for first in range(0, len(drawn), size):
            part = drawn[first : first + size]
            yield part if own else part[:, codes]


def ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """above / below, NaN where `below` is not positive."""
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)
    out: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)
    return out


def mean_of_defined(values: Floats) -> Floats:
    """`[R, K]` → `[R]`: the mean over the classes that a resample has."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))
