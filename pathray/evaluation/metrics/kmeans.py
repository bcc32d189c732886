"""k-means of the clustering score: scikit-learn's, on the principal components that hold nearly all of the variance.

A fit has one thread, so that sums are made in one order: equal input, equal labels, however many cores there are.
Not here: how many clusters there are (pathray.evaluation.metrics.clustering).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
R = TypeVar("R")

TOLERANCE = 1e-4  # scikit-learn's: centres that moved less, in units of a feature's mean variance, have arrived
KEPT = 0.999  # of the variance: what is left moves no cluster, and is most of the columns of a trained encoder


@dataclass(frozen=True)
class Points:
    """Points `[N, D']` to cluster, and the `tolerance` in units of their own mean variance."""

    coordinates: npt.NDArray[np.float32]
    tolerance: float


def reduce_features(features: npt.NDArray[np.floating[Any]]) -> Points:
    """Features `[N, D]`, centred, along the leading principal components that hold `KEPT` of the variance."""
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    share = np.cumsum(values[::-1]) / max(values.sum(), 1e-300)
    leading = min(int(np.searchsorted(share, KEPT)) + 1, len(values))
    kept = centred @ vectors[:, ::-1][:, :leading]
    # scikit-learn multiplies by the mean variance of the columns that it sees; meant is that of all features
    scale = float(centred.var(axis=0).mean()) / max(float(kept.var(axis=0).mean()), 1e-300)
    return Points(np.ascontiguousarray(kept, np.float32), TOLERANCE * scale)


def cluster(points: Points, k: int, starts: int, seed: int) -> npt.NDArray[np.uint8]:
    """Labels `[N]` of the run of least inertia of `starts` runs, each from k < 256 rows drawn by `seed`."""
    from sklearn.cluster import KMeans

    fit = KMeans(k, init="random", n_init=starts, random_state=seed, tol=points.tolerance, copy_x=False)
    with _threads().limit(limits=1, user_api="openmp"):
        return np.asarray(fit.fit(points.coordinates).labels_, np.uint8)


def map_in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order: an item a thread, as many threads as BLAS would take, BLAS in one each. Inside
    another such call it is a plain loop."""
    from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    if threads == 1 or len(items) == 1:
        return [work(item) for item in items]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


@cache
def _threads() -> Any:
    """The thread pools of the libraries that are loaded: finding them takes longer than a small fit."""
    import sklearn.cluster  # noqa: F401  # its own OpenMP is to be among them
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
