"""Statistics of slides: seconds of resampling as ratios of one run, and how often intervals cover the truth.

    python benchmarks/statistics_mil.py [--rounds 5] [--cohorts 1000]

One core, about 8 minutes, most of them for the cohorts. "auroc": 2,000 resamples of n rows against scikit-learn's
`roc_auc_score` in a loop over the same draws, and their largest difference; drawing is in neither, but stated.
"report": all classification scores of three classes and 200 patients with intervals, drawing included. "delong": one
test of two models against the pairwise definition in NumPy. Works take turns; the median of the rounds' ratios and the
least processor time count. "coverage": cohorts of 100 patients with one to six slides that resemble each other; the
share of 95% intervals of AUROC that hold the true one, resampling patients, resampling slides, and by DeLong's two
variances.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from pathray.stats.bootstrap import cluster_counts  # noqa: E402
from pathray.stats.classification import classification_report  # noqa: E402
from pathray.stats.comparing.delong import delong, delong_test  # noqa: E402
from pathray.stats.ranking import Ranking  # noqa: E402
from pathray.stats.weights import row_weights  # noqa: E402
from tests.builders.slide_scores import TRUE_AUROC, cohort, covers  # noqa: E402

RESAMPLES = 2000
Work = Callable[[], object]


def seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(ours: Work, theirs: Work, rounds: int) -> tuple[float, float, float]:
    """The least seconds of both, and the median ratio, of works that take turns."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return min(a for a, _ in pairs), min(b for _, b in pairs), statistics.median(b / a for a, b in pairs)


def resampled_auroc(n: int, rounds: int) -> str:
    g = np.random.default_rng(0)
    y = g.random(n) < 0.4
    score = np.round(g.normal(size=n) + y, 3)
    blocks = list(row_weights(np.arange(n), n, resamples=RESAMPLES, seed=0))
    rows = [np.repeat(np.arange(n), times.astype(np.int64)) for block in blocks for times in block]

    def ours() -> np.ndarray:
        ranking = Ranking.of(y, score)
        return np.concatenate([ranking.auroc(w) for w in blocks])

    def theirs() -> np.ndarray:
        return np.array([roc_auc_score(y[drawn], score[drawn]) for drawn in rows])

    error = float(np.abs(ours() - theirs()).max())
    own, other, ratio = turns(ours, theirs, rounds)
    draw = seconds(lambda: list(cluster_counts(n, RESAMPLES, 0)))
    figures = f"{own:.3f} s, scikit-learn {other:.2f} s, {ratio:.0f}x, differs by {error:.0e}; drawing {draw:.2f} s"
    return f"auroc n={n}: {figures}"


def report(rounds: int) -> str:
    g = np.random.default_rng(0)
    truth, patients = g.integers(0, 3, 500), g.integers(0, 200, 500)
    p = g.dirichlet(np.ones(3), 500) + 0.5 * np.eye(3)[truth]
    p /= p.sum(axis=1, keepdims=True)
    found = classification_report(truth, p, ("a", "b", "c"), patients)
    count = len(found.overall) + sum(map(len, found.per_class.values()))
    least = min(seconds(lambda: classification_report(truth, p, ("a", "b", "c"), patients)) for _ in range(rounds))
    return f"report n=500: {count} scores with intervals of {RESAMPLES} resamples in {least:.2f} s"


def pairwise(y: np.ndarray, scores: list[np.ndarray]) -> np.ndarray:
    psi = [(s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y]) for s in scores]
    means = [np.cov([x.mean(axis=axis) for x in psi]) for axis in (1, 0)]
    return means[0] / y.sum() + means[1] / (~y).sum()


def tests(n: int, rounds: int) -> str:
    g = np.random.default_rng(0)
    y = g.random(n) < 0.4
    a, b = (g.normal(size=n) + y for _ in range(2))
    c = pairwise(y, [a, b])
    z = (roc_auc_score(y, a) - roc_auc_score(y, b)) / (c[0, 0] + c[1, 1] - 2 * c[0, 1]) ** 0.5
    error = abs(float(delong_test(y, a, b).z or 0) - z)
    own, other, ratio = turns(lambda: delong_test(y, a, b), lambda: pairwise(y, [a, b]), rounds)
    return f"delong n={n}: {1e3 * own:.1f} ms, pairwise {1e3 * other:.0f} ms, {ratio:.0f}x, z differs by {error:.0e}"


def coverage(cohorts: int) -> str:
    hits = {name: 0 for name in ("patients", "slides", "delong by patients", "delong by slides")}
    for seed in range(cohorts):
        y, score, patients = cohort(seed)
        hits["patients"] += covers(y, score, patients, RESAMPLES)
        hits["slides"] += covers(y, score, None, RESAMPLES)
        for name, clusters in (("delong by patients", patients), ("delong by slides", None)):
            found = delong(y, score, clusters)
            hits[name] += found.low is not None and found.low <= TRUE_AUROC <= (found.high or 0)
    return f"coverage over {cohorts} cohorts: " + ", ".join(f"{n} {h / cohorts:.3f}" for n, h in hits.items())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohorts", type=int, default=1000)
    args = parser.parse_args()
    for n in (500, 5000):
        print(resampled_auroc(n, args.rounds), flush=True)
    print(report(args.rounds), flush=True)
    print(tests(5000, args.rounds), flush=True)
    print(coverage(args.cohorts), flush=True)


if __name__ == "__main__":
    main()
