"""Every main score of every seed on the same resamples of patients, and the differences of two experiments' means.

With s* a score on a resample of patients, d* = mean of s* over a's seeds − mean of s* over b's. So the seeds are taken
as they are: the difference is one of these trained models. Not here: seeds as draws of a method
(mil.comparison.over_seeds), tests without resampling (mil.comparison.auroc, mil.comparison.accuracy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.comparison.experiments import Experiment
from mil.results.seeds import main_scores
from pathray.stats.bootstrap import cluster_codes
from pathray.stats.comparing.scores import bootstrap_p_value
from pathray.stats.estimates import Estimate, estimate_of
from pathray.stats.weights import row_weights

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """Scores of S seeds: on all slides `[S]`, and on R resamples `[R, S]`; why one is not defined; the number of
    patients."""

    whole: Mapping[str, Floats]
    drawn: Mapping[str, Floats]
    reasons: Mapping[str, str]
    clusters: int

    def mean(self, score: str) -> float:
        return float(self.whole[score].mean())

    def means(self, score: str) -> Floats:
        """The mean over seeds on each resample `[R]`."""
        return np.asarray(self.drawn[score].mean(axis=1), np.float64)


def resample(experiment: Experiment, *, resamples: int, seed: int) -> Resampled:
    """The scores of an experiment. Equal `seed` and equal patients give equal resamples."""
    pairs = [main_scores(one) for one in experiment.seeds]
    sets, clusters = [s for s, _ in pairs], pairs[0][1]
    codes = cluster_codes(clusters, sets[0].n)
    count, seeds = int(codes.max(initial=-1)) + 1, len(sets)
    ones = np.ones((1, sets[0].n))
    whole = [one.values(ones) for one in sets]
    drawn: dict[str, list[Floats]] = {name: [np.empty((0, seeds))] for name in whole[0]}
    if count > 1:
        for w in row_weights(codes, count, resamples=resamples, seed=seed):
            each = [one.values(w) for one in sets]
            for name, parts in drawn.items():
                parts.append(np.stack([found[name] for found in each], axis=1))
    values = {name: np.array([found[name][0] for found in whole], np.float64) for name in whole[0]}
    joined = {name: np.concatenate(parts) for name, parts in drawn.items()}
    return Resampled(values, joined, sets[0].reasons, count)


def estimate_mean(one: Resampled, score: str, level: float) -> Estimate:
    """The mean over seeds with its interval over patients."""
    reason = one.reasons.get(score)
    return estimate_of(one.mean(score), one.means(score), level=level, clusters=one.clusters, reason=reason)


def estimate_difference(a: Resampled, b: Resampled, score: str, level: float) -> tuple[Estimate, float | None]:
    """a − b of the seeds' means with its interval over patients, and the two-sided p-value of the bootstrap
    (`bootstrap_p_value`); None where there is no interval."""
    drawn = a.means(score) - b.means(score)
    reason = a.reasons.get(score) or b.reasons.get(score)
    value = a.mean(score) - b.mean(score)
    difference = estimate_of(value, drawn, level=level, clusters=a.clusters, reason=reason)
    return difference, None if difference.reason else bootstrap_p_value(drawn)
