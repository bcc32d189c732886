"""Every main score of every seed on the same resamples of patients, and what their differences say.

    patients           d* = mean over a's seeds of s*  −  mean over b's seeds of s*,  s* on a resample of patients
    patients, seeds    the same with S − 1 of the S seeds of each drawn with replacement at every resample

The first is about these trained models, the second about the method that made them. S − 1 draws give the mean its
unbiased variance s²/S (Rao & Wu 1988); S draws would make it (S − 1)/S as large. Not here: tests without resampling
(mil.comparison.auroc, mil.comparison.accuracy).
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
    """Scores of S seeds: on all slides `[S]`, and on R resamples `[R, S]`; why one is not defined; `chosen` `[R, S−1]`
    says which seeds count in each resample."""

    whole: Mapping[str, Floats]
    drawn: Mapping[str, Floats]
    reasons: Mapping[str, str]
    clusters: int
    chosen: npt.NDArray[np.int64] | None

    def mean(self, score: str) -> float:
        return float(self.whole[score].mean())

    def means(self, score: str, with_seeds: bool = False) -> Floats:
        """The mean over seeds on each resample `[R]`; `with_seeds`: of those that were drawn for it."""
        values = self.drawn[score]
        if with_seeds and self.chosen is not None:
            values = np.take_along_axis(values, self.chosen, axis=1)
        return np.asarray(values.mean(axis=1), np.float64)


def resample(experiment: Experiment, *, resamples: int, seed: int, number: int = 0) -> Resampled:
    """The scores of an experiment. Equal `seed` and equal patients give equal resamples; experiments with another
    `number` draw their seeds independently."""
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
    chosen = None
    if seeds > 1:
        size = (len(next(iter(joined.values()))), seeds - 1)
        chosen = np.random.default_rng((seed, number)).integers(seeds, size=size)
    return Resampled(values, joined, sets[0].reasons, count, chosen)


def estimate_mean(one: Resampled, score: str, level: float) -> Estimate:
    """The mean over seeds with its interval over patients."""
    reason = one.reasons.get(score)
    return estimate_of(one.mean(score), one.means(score), level=level, clusters=one.clusters, reason=reason)


def estimate_difference(
    a: Resampled, b: Resampled, score: str, level: float, with_seeds: bool = False
) -> tuple[Estimate, float | None]:
    """a − b of the seeds' means with its interval over patients (and seeds), and the two-sided p-value of the bootstrap
    (`bootstrap_p_value`); None where there is no interval."""
    drawn = a.means(score, with_seeds) - b.means(score, with_seeds)
    reason = a.reasons.get(score) or b.reasons.get(score)
    value = a.mean(score) - b.mean(score)
    difference = estimate_of(value, drawn, level=level, clusters=a.clusters, reason=reason)
    return difference, None if difference.reason else bootstrap_p_value(drawn)
