"""k-means, many runs at once: Lloyd's iterations from several random starts through the same matrix products.

What scikit-learn's `KMeans(init="random")` does run by run and where it stops (the same tolerance), but without sums in
a racing order: equal input, equal labels. A centre that did not move is not multiplied again. Not here: how many
clusters there are (pathray.evaluation.metrics.clustering).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

T = TypeVar("T")
R = TypeVar("R")

TOLERANCE = 1e-4  # of the mean variance of a feature: centres that moved less, squared and summed, have arrived
MAX_ITER = 300
KEPT = 0.999  # of the variance: what is left moves no cluster, and is most of the columns of a trained encoder
BLOCK_BYTES = 16 << 20  # of scores at a time: a few runs, and what a core's cache can nearly hold


@dataclass
class Points:
    """Points `[N, D]` along their leading principal components, as many as hold `KEPT` of the variance, centred:
    float32 to search with, float64 to average."""

    given: npt.NDArray[np.floating[Any]]
    exact: Doubles = field(init=False)
    single: Singles = field(init=False)  # [D + 1, N], the last row −1: it takes |c|²/2
    variance: float = field(init=False)

    def __post_init__(self) -> None:
        self.exact = np.asarray(self.given, np.float64)
        self.exact = self.exact - self.exact.mean(axis=0)
        self.variance = float(self.exact.var(axis=0).mean())  # of all of them: it is scikit-learn's
        values, vectors = np.linalg.eigh(self.exact.T @ self.exact)
        share = np.cumsum(values[::-1]) / max(values.sum(), 1e-300)
        leading = int(np.searchsorted(share, KEPT)) + 1
        if leading < len(values):
            self.exact = self.exact @ vectors[:, ::-1][:, :leading]
        self.single = np.concatenate([self.exact, -np.ones((len(self.exact), 1))], axis=1).astype(np.float32).T.copy()


def starts(n: int, k: int, runs: int, seed: int) -> Ints:
    """Rows that the runs' centres start from, `[runs, k]`: k different ones each."""
    generator = np.random.Generator(np.random.Philox(seed))
    return np.stack([generator.choice(n, k, replace=False) for _ in range(runs)])


def kmeans(points: Points, begin: Ints) -> tuple[npt.NDArray[np.uint8], Doubles]:
    """(labels `[R, N]`, inertia `[R]`) of R runs from the rows `begin` `[R, K]`, K < 256."""
    step = max(1, BLOCK_BYTES // (4 * begin.shape[1] * len(points.exact)))
    parts = in_threads(partial(_lloyd, points), [begin[i : i + step] for i in range(0, len(begin), step)])
    labels, inertia = zip(*parts, strict=True)
    return np.concatenate(labels), np.concatenate(inertia)


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order: an item a thread, as many threads as BLAS would take, BLAS in one each. Inside
    another such call it is a plain loop."""
    from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    if threads == 1 or len(items) == 1:
        return [work(item) for item in items]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def best_of(labels: npt.NDArray[np.uint8], inertia: Doubles, groups: int) -> npt.NDArray[np.uint8]:
    """`[R, N]` in `groups` groups of consecutive runs → the labels of each group's lowest inertia, `[groups, N]`."""
    each = len(labels) // groups
    best = inertia.reshape(groups, each).argmin(axis=1) + each * np.arange(groups)
    chosen: npt.NDArray[np.uint8] = labels[best]
    return chosen


def _lloyd(points: Points, begin: Ints) -> tuple[npt.NDArray[np.uint8], Doubles]:
    runs, k = begin.shape
    n, dim = points.exact.shape
    out, inertia = np.zeros((runs, n), np.uint8), np.zeros(runs)
    centers = points.exact[begin.ravel()].reshape(runs, k, dim)
    score = np.empty((runs, k, n), np.float32)  # x·c − |c|²/2: larger is nearer
    labels, sums = np.zeros((runs, n), np.uint8), np.zeros((runs, k, dim))
    counts = np.zeros((runs, k), np.int64)
    moved, active = np.ones((runs, k), bool), np.arange(runs)
    squares = float(np.einsum("nd,nd->", points.exact, points.exact))
    for iteration in range(MAX_ITER + 1):
        _score(points, centers, moved, score)
        new, best = _nearest(score)
        changed = np.ones_like(new, bool) if iteration == 0 else new != labels
        _update(points, sums, counts, labels, new, changed, first=iteration == 0)
        labels = new
        _refill(points, labels, best, sums, counts)
        fresh = sums / counts[:, :, None]
        shift = np.einsum("rkd,rkd->r", fresh - centers, fresh - centers)
        done = ~changed.any(axis=1) | (iteration == MAX_ITER)
        # arrived, but for one more assignment to where the centres have come to
        late = ~done & (shift <= TOLERANCE * points.variance)
        moved, centers = (fresh != centers).any(axis=2), fresh
        if late.any():
            final = np.flatnonzero(late)
            again = np.empty((len(final), k, n), np.float32)
            _score(points, centers[final], np.ones((len(final), k), bool), again)
            labels[final], best[final] = _nearest(again)
        over = done | late
        if over.any():
            out[active[over]] = labels[over]
            inertia[active[over]] = squares - 2 * best[over].sum(axis=1, dtype=np.float64)
            left = ~over
            if not left.any():
                break
            active, centers, score, labels = active[left], centers[left], score[left], labels[left]
            sums, counts, moved = sums[left], counts[left], moved[left]
    return out, inertia


def _score(points: Points, centers: Doubles, moved: npt.NDArray[np.bool_], into: Singles) -> None:
    some = centers[moved]
    half = 0.5 * np.einsum("md,md->m", some, some)
    keys = np.concatenate([some, half[:, None]], axis=1).astype(np.float32)
    if moved.all():
        np.matmul(keys, points.single, out=into.reshape(-1, into.shape[2]))
    else:
        into[moved] = keys @ points.single


def _nearest(score: Singles) -> tuple[npt.NDArray[np.uint8], Singles]:
    """(index `[R, N]` of the best of K, its score); the first of equals."""
    best = score[:, 0].copy()
    labels, better = np.zeros(best.shape, np.uint8), np.empty(best.shape, bool)
    index = better.view(np.uint8)
    for k in range(1, score.shape[1]):
        np.greater(score[:, k], best, out=better)
        np.multiply(index, k, out=index, casting="unsafe")
        np.maximum(labels, index, out=labels)  # k only grows: a masked copy, but several times as fast
        np.maximum(best, score[:, k], out=best)
    return labels, best


def _update(
    points: Points,
    sums: Doubles,
    counts: Ints,
    old: npt.NDArray[np.uint8],
    new: npt.NDArray[np.uint8],
    changed: npt.NDArray[np.bool_],
    *,
    first: bool,
) -> None:
    """Bring the clusters' sums and sizes from the old labels to the new ones, by the points that changed."""
    from scipy.sparse import csr_matrix

    runs, k, dim = sums.shape
    run, row = np.nonzero(changed)
    to = run * k + new[run, row]
    if first:
        sign, at, row = np.ones(len(to)), to, row
    else:
        sign = np.concatenate([np.ones(len(to)), -np.ones(len(to))])
        at, row = np.concatenate([to, run * k + old[run, row]]), np.concatenate([row, row])
    table = csr_matrix((sign, (at, row)), shape=(runs * k, len(points.exact)))
    sums += (table @ points.exact).reshape(runs, k, dim)
    counts += np.rint(np.asarray(table.sum(axis=1))).astype(np.int64).reshape(runs, k)


def _refill(points: Points, labels: npt.NDArray[np.uint8], best: Singles, sums: Doubles, counts: Ints) -> None:
    """An empty cluster takes the point that lies farthest from its own centre, from a cluster that has others."""
    for run, k in np.argwhere(counts == 0):
        far = 0.5 * np.einsum("nd,nd->n", points.exact, points.exact) - best[run]
        far[counts[run][labels[run]] < 2] = -np.inf
        i = int(far.argmax())
        giver = labels[run, i]
        sums[run, giver] -= points.exact[i]
        sums[run, k] = points.exact[i]
        counts[run, giver] -= 1
        counts[run, k] += 1
        labels[run, i] = k
