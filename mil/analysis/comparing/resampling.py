"""Scores of several models on the same resamples: patients and, where a model has several seeds, its seeds too.

A model's score is the mean over its seeds. A resample draws patients with replacement, the same for all models and
seeds, and S − 1 of a model's S seeds with replacement, which gives the mean over seeds its unbiased variance (Rao & Wu
1988, section 3). With one seed a resample is that of pathray.stats.comparing.scores. Not here: what scores there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_codes
from pathray.stats.estimates import Estimate, ScoreSet, estimate_of
from pathray.stats.weights import row_weights

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A score on all rows, its value for each seed `[S]` and on each resample `[R]`; why it is not defined."""

    value: float
    each: Floats
    resampled: Floats
    clusters: int
    reason: str | None = None

    def estimate(self, level: float) -> Estimate:
        return estimate_of(self.value, self.resampled, level=level, clusters=self.clusters, reason=self.reason)


def draw_scores(
    models: Mapping[str, Sequence[ScoreSet]], clusters: npt.ArrayLike, *, resamples: int, seed: int
) -> dict[str, dict[str, Drawn]]:
    """Each score of each model, whose seeds are ScoreSets of the same rows, over whole clusters `[N]` (patients)."""
    n = next(iter(models.values()))[0].n
    codes = cluster_codes(clusters, n)
    count = int(codes.max(initial=-1)) + 1
    shares = {name: seed_shares(len(sets), resamples, seed, i) for i, (name, sets) in enumerate(models.items())}
    whole = {name: _by_seed(sets, np.ones((1, n))) for name, sets in models.items()}
    drawn = {name: {score: [np.empty(0)] for score in found} for name, found in whole.items()}
    start = 0
    for w in row_weights(codes, count, resamples=resamples, seed=seed) if count > 1 else ():
        for name, sets in models.items():
            part = shares[name][start : start + len(w)]
            for score, values in _by_seed(sets, w).items():
                drawn[name][score].append(_mean(values, part))
        start += len(w)
    return {
        name: {
            score: Drawn(float(v[:, 0].mean()), v[:, 0], np.concatenate(drawn[name][score]), count, _why(sets, score))
            for score, v in whole[name].items()
        }
        for name, sets in models.items()
    }


def seed_shares(seeds: int, resamples: int, seed: int, model: int) -> Floats:
    """The share of each seed in each resample `[R, S]`; rows sum to 1."""
    if seeds == 1:
        return np.ones((resamples, 1))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, model])))
    drawn = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
    return np.asarray(drawn / (seeds - 1), np.float64)


def _by_seed(sets: Sequence[ScoreSet], w: Floats) -> dict[str, Floats]:
    """Each score `[S, r]` on weights `[r, N]`."""
    found = [one.values(w) for one in sets]
    return {score: np.stack([one[score] for one in found]) for score in found[0]}


def _mean(values: Floats, shares: Floats) -> Floats:
    """`[r]`: the weighted mean over seeds of values `[S, r]`; NaN where a seed that counts is not defined."""
    out: Floats = np.where(shares.T > 0, values * shares.T, 0.0).sum(axis=0)
    return out


def _why(sets: Sequence[ScoreSet], score: str) -> str | None:
    return next((one.reasons[score] for one in sets if score in one.reasons), None)
