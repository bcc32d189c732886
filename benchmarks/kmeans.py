"""k-means of the clustering score: how many times as long scikit-learn takes, and whether both find the same.

    OMP_NUM_THREADS=1 python benchmarks/kmeans.py
    python benchmarks/kmeans.py --sizes 4012x384 --rounds 3

For every size, what the score of one pair of classes and centres does: the best of 20 starts of each K (2, 9, 16, 23,
30 are timed, the others interpolated), and 50 times the best of 5 starts of K = 2. scikit-learn runs
`KMeans(init="random")` on the normalised features, and once more on what ours runs on: float32 coordinates along the
principal components that hold 99.9% of the variance. Then both start from the same rows of these components, run by
run. Printed: CPU seconds, ratios to ours, by how much the inertia of a run differs, and the adjusted Rand index of its
labels. Three minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pathorob import cohort
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from pathray.evaluation.metrics.clustering import KS, SELECTION_INITS, TRIAL_INITS, TRIALS
from pathray.evaluation.metrics.kmeans import Points, best_of, kmeans, starts
from pathray.evaluation.metrics.robustness_index import normalised

Array = npt.NDArray[Any]
Cluster = Callable[[int, int, int], object]  # K, starts, trials
TIMED = KS[::7]
SEED = 1337


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["480x192", "1200x384", "4012x384"], help="rows x features")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for size in options.sizes:
        rows, dim = map(int, size.split("x"))
        x = normalised(cohort(17, -(-rows // 68), dim)[0][:rows])
        points = Points(x)
        print(f"{rows:,} x {dim} ({points.exact.shape[1]} components hold 99.9% of the variance)")
        single = points.exact.astype(np.float32)
        ours = time_score(lambda k, inits, trials, p=points: run_ours(p, k, inits, trials), options.rounds)
        report("ours", ours, ours)
        for name, data in (("scikit-learn", x), ("scikit-learn, components", single)):
            spent = time_score(lambda k, inits, trials, d=data: run_sklearn(d, k, inits, trials), options.rounds)
            report(name, spent, ours)
        compare(points, single)


def time_score(cluster: Cluster, rounds: int) -> float:
    """CPU seconds of the k-means of one pair's score, the least of `rounds`."""

    def once() -> float:
        spent = {k: time_call(cluster, k, SELECTION_INITS, 1) for k in TIMED}
        selection = float(np.interp(list(KS), list(spent), list(spent.values())).sum())
        return selection + time_call(cluster, 2, TRIAL_INITS, TRIALS)

    return min(once() for _ in range(rounds))


def time_call(cluster: Cluster, *arguments: int) -> float:
    start = time.process_time()
    cluster(*arguments)
    return time.process_time() - start


def run_ours(points: Points, k: int, inits: int, trials: int) -> Array:
    n = len(points.exact)
    begin = np.concatenate([starts(n, k, inits, SEED + trial) for trial in range(trials)])
    return best_of(*kmeans(points, begin), trials)


def run_sklearn(x: Array, k: int, inits: int, trials: int) -> list[Array]:
    return [
        KMeans(k, init="random", n_init=inits, random_state=SEED + trial, copy_x=False).fit(x).labels_
        for trial in range(trials)
    ]


def report(name: str, seconds: float, ours: float) -> None:
    print(f"  {name:<26}{seconds:7.2f} s CPU{seconds / ours:7.1f} x ours")


def compare(points: Points, single: Array) -> None:
    """How far runs of both from the same rows differ."""
    inertia, rand = [], []
    for k in TIMED:
        begin = starts(len(single), k, SELECTION_INITS, SEED)
        for rows, labels, value in zip(begin, *kmeans(points, begin), strict=True):
            fit = KMeans(k, init=single[rows], n_init=1).fit(single)
            inertia.append(abs(value / fit.inertia_ - 1))
            rand.append(adjusted_rand_score(fit.labels_, labels))
    worse = sum(value > 1e-3 for value in inertia)
    print(f"  inertia of {len(inertia)} runs: median difference {np.median(inertia):.0e}, {worse} above 0.1%")
    print(f"  adjusted Rand index of their labels: median {np.median(rand):.4f}, least {min(rand):.3f}")


if __name__ == "__main__":
    main()
