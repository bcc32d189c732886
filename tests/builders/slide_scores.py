"""Generated cohorts of patients whose slides resemble each other, with a known AUROC, and whether intervals hold it."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from pathray.stats.bootstrap import percentile_interval
from pathray.stats.ranking import Ranking
from pathray.stats.weights import row_weights

PATIENTS, SHIFT, BETWEEN, WITHIN = 100, 1.2, 1.0, 0.5  # deviations between patients, and within one
TRUE_AUROC = float(norm.cdf(SHIFT / (2 * (BETWEEN**2 + WITHIN**2)) ** 0.5))


def cohort(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, scores and patients of slides `[N]`: one to six slides a patient, who is positive or not as a whole."""
    g = np.random.default_rng(seed)
    patients = np.repeat(np.arange(PATIENTS), g.integers(1, 7, PATIENTS))
    positive = g.permutation(PATIENTS) < PATIENTS // 2
    score = (g.normal(size=PATIENTS) * BETWEEN + SHIFT * positive)[patients] + WITHIN * g.normal(size=patients.size)
    return positive[patients], score, patients


def covers(y: np.ndarray, score: np.ndarray, clusters: np.ndarray | None, resamples: int) -> bool:
    """Whether the percentile interval over clusters (None: over slides) holds the true AUROC."""
    codes = np.arange(y.size) if clusters is None else clusters
    ranking = Ranking.of(y, score)
    drawn = [ranking.auroc(w) for w in row_weights(codes, int(codes.max()) + 1, resamples=resamples, seed=0)]
    low, high = percentile_interval(np.concatenate(drawn))
    return low <= TRUE_AUROC <= high
