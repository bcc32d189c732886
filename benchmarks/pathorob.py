"""Robustness metrics: seconds, memory, and the ratio to naive versions, of one run.

    OMP_NUM_THREADS=2 python benchmarks/pathorob.py
    python benchmarks/pathorob.py --only ri --large

The features carry classes, centres and slides: 4,012 x 384 (17 slides of 59 patches in each of four cells) and, with
`--large`, 22,402 x 1,024. Naive versions: for the index every distance in float64 and a full sort; for the drop one
scikit-learn fit per split, repetition and strength (3 of 24 paths are timed); for the score scikit-learn's KMeans and
silhouette (K = 2, 9, 16, 23, 30 are timed, the rest interpolated). Bars on two free cores: index 0.7 s, drop 0.8 s for
24 fits (each over 15 strengths), score 6 s; the large index 20 s and 2 GiB. CPU seconds are printed too, because other
load slows the wall clock. One minute.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.evaluation.metrics.apd import CS, average_performance_drop
from pathray.evaluation.metrics.apd_splits import design, repetitions
from pathray.evaluation.metrics.clustering import KS, SELECTION_INITS, TRIAL_INITS, TRIALS, clustering_score
from pathray.evaluation.metrics.robustness_index import normalise, robustness_index

Array = npt.NDArray[Any]
BARS = {"index": 0.7, "drop": 0.8, "score": 6.0, "large index": 20.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("ri", "apd", "clustering"))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-naive", action="store_true")
    options = parser.parse_args()
    x, labels, centers, slides = cohort(17, 59, 384)
    print(f"{x.shape[0]:,} x {x.shape[1]} features, 2 classes, 2 centres, 68 slides")
    naive = not options.no_naive
    if options.only in (None, "ri"):
        run = timed("index", lambda: robustness_index(x, labels, centers, slides, k=11).value, options.rounds)
        if naive:
            compare(run, naive_index(x, labels, centers, slides, 11))
    if options.only in (None, "apd"):
        ood = np.zeros(len(x), bool)
        run = timed(
            "drop",
            lambda: average_performance_drop(x, labels, centers, slides, ood, repeats=3).apd_id.estimate,
            options.rounds,
        )
        if naive:
            compare(run, 24 / 3 * naive_drop(x, labels, centers, slides, paths=3))
    if options.only in (None, "clustering"):
        run = timed("score", lambda: clustering_score(x, labels, centers).score, options.rounds)
        if naive:
            compare(run, naive_score(x))
    if options.large:
        x, labels, centers, slides = (part[:22_402] for part in cohort(19, 300, 1024))
        print(f"{x.shape[0]:,} x {x.shape[1]} features")
        timed("large index", lambda: robustness_index(x, labels, centers, slides, k=11).value, 1)


def cohort(slides: int, patches: int, dim: int, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Features whose spectrum falls as a trained encoder's does: eight directions that carry class, centre and slide,
    and noise that decays as 1/k."""
    g = np.random.default_rng(seed)
    spread = 1.0 / np.arange(1, dim + 1)
    cells = [(c, y, s) for c in range(2) for y in range(2) for s in range(slides)]
    center, label, slide = (np.repeat([cell[i] for cell in cells], patches) for i in range(3))
    slide = slide + slides * (label + 2 * center)

    def effect(groups: Array, size: float) -> Array:
        return (g.normal(size=(int(groups.max()) + 1, dim)) * spread * size)[groups]

    noise = g.normal(size=(len(label), dim)) * spread
    x = 0.5 * noise + effect(label, 1.0) + effect(center, 1.0) + effect(slide, 1.0) + spread.max() * 0.5
    return x.astype(np.float32), label, center, slide


def timed(name: str, run: Callable[[], float], rounds: int) -> tuple[str, float]:
    best, cpu, value = float("inf"), float("inf"), 0.0
    for _ in range(rounds):
        wall, used = time.perf_counter(), time.process_time()
        value = run()
        best, cpu = min(best, time.perf_counter() - wall), min(cpu, time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    bar = BARS[name]
    verdict = "within" if best <= bar else "over"
    spent = f"{best:7.2f} s, {cpu:6.2f} s of CPU, peak {peak:.2f} GiB"
    print(f"  {name:12s} {spent}, value {value:+.3f}; bar {bar:g} s: {verdict}")
    return name, best


def compare(ours: tuple[str, float], naive_seconds: float) -> None:
    print(f"  {'one by one':12s} {naive_seconds:7.2f} s: x {naive_seconds / ours[1]:.1f}")


def naive_index(x: Array, labels: Array, centers: Array, slides: Array, k: int) -> float:
    start = time.perf_counter()
    unit = normalise(x)
    so = os = 0
    for i in range(len(unit)):
        distance = ((unit - unit[i]) ** 2).sum(axis=1)
        distance[slides == slides[i]] = np.inf
        near = np.argsort(distance, kind="stable")[:k]
        same_class, same_center = labels[near] == labels[i], centers[near] == centers[i]
        so += int((same_class & ~same_center).sum())
        os += int((~same_class & same_center).sum())
    assert so / (so + os) == robustness_index(x, labels, centers, slides, k=k).value
    return time.perf_counter() - start


def naive_drop(x: Array, labels: Array, centers: Array, slides: Array, paths: int) -> float:
    from sklearn.linear_model import LogisticRegression

    unit, start = normalise(x), time.perf_counter()
    chosen = design("", labels, centers, slides)
    draw = next(repetitions(chosen, labels, centers, slides, count=1, seed=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in draw.train[:paths]:
            for c in CS:
                LogisticRegression(C=c).fit(unit[rows], labels[rows]).predict(unit[draw.test])
    return time.perf_counter() - start


def naive_score(x: Array) -> float:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    unit = normalise(x).astype(np.float32)
    spent = {}
    for k in KS[::7]:
        start = time.perf_counter()
        fit = KMeans(k, init="random", n_init=SELECTION_INITS, random_state=1337).fit(unit)
        silhouette_score(unit, fit.labels_, metric="cosine")
        spent[k] = time.perf_counter() - start
    total = float(np.interp(list(KS), list(spent), list(spent.values())).sum())
    start = time.perf_counter()
    KMeans(2, init="random", n_init=TRIAL_INITS, random_state=1337).fit(unit)
    return total + TRIALS * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
