"""Probes one encoder: features of units from those of their volumes, predictions of every tested unit, scores.

Both eyes of a person count alike, whatever the number of scans. Not here: how features are computed
(oct.downstream.features), what is written (oct.downstream.results).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oct.downstream.attentive import attentive_predictions
from oct.downstream.cohort import Cohort
from oct.downstream.config import ProbeConfig
from oct.downstream.features import Features
from oct.downstream.linear import linear_predictions
from pathray.data.splits import Split
from pathray.stats.bootstrap import Interval
from pathray.stats.scores import Score, classification_scores, cluster_interval, intervals, regression_scores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """Of the tested `units` `[M]` of a cohort: `values` `[M, K]` probabilities, or numbers `[M]`; `fold` `[M]` in which
    each was tested; `chosen`: the strength (or learning rate) of each fold."""

    units: Ints
    values: Floats
    fold: Ints
    chosen: list[float] = field(default_factory=list)

    def scores(self, cohort: Cohort) -> dict[str, Score]:
        truth = cohort.truth[self.units]
        if cohort.classes:
            return classification_scores(truth.astype(np.int64), self.values)
        return regression_scores(truth, self.values)

    def judge(self, cohort: Cohort, resamples: int, seed: int) -> dict[str, Interval]:
        """Each score with its 95% interval over persons."""
        return intervals(self.scores(cohort), cohort.groups[self.units], resamples=resamples, seed=seed)

    def compare(self, other: Predictions, cohort: Cohort, resamples: int, seed: int) -> dict[str, Interval]:
        """Differences of the scores to those of other predictions of the same units, on the same resamples."""
        assert np.array_equal(self.units, other.units), "predictions of other units"
        mine, theirs, persons = self.scores(cohort), other.scores(cohort), cohort.groups[self.units]
        return {
            name: cluster_interval(mine[name], persons, minus=theirs[name], resamples=resamples, seed=seed)
            for name in mine
        }


def probe_linear(
    cohort: Cohort, features: Features, splits: Sequence[Split], config: ProbeConfig, seed: int
) -> Predictions:
    """Logistic regression or ridge on the mean token of each unit."""
    x = unit_means(cohort, features.mean)

    def predict(train: Ints, test: Ints) -> tuple[Floats, float]:
        return linear_predictions(
            x[train], cohort.truth[train], cohort.groups[train].tolist(), x[test],
            classes=len(cohort.classes), inner=config.inner_folds, seed=seed,
        )  # fmt: skip

    return _over_folds(cohort, splits, predict)


def probe_attentive(
    cohort: Cohort, features: Features, splits: Sequence[Split], config: ProbeConfig, seed: int
) -> Predictions:
    """One query's attention over all tokens of each unit."""
    assert features.tokens is not None, "features without tokens"
    tokens = [
        np.concatenate([features.tokens[v] for v in np.flatnonzero(cohort.unit == u)]) for u in range(len(cohort.names))
    ]

    def predict(train: Ints, test: Ints) -> tuple[Floats, float]:
        return attentive_predictions(
            [tokens[i] for i in train], cohort.truth[train], cohort.groups[train].tolist(), [tokens[i] for i in test],
            classes=len(cohort.classes), config=config, seed=seed,
        )  # fmt: skip

    return _over_folds(cohort, splits, predict)


def unit_means(cohort: Cohort, mean: npt.NDArray[np.float32]) -> Floats:
    """`[U, D]` of volumes `[V, D]`: the mean over the scans of each eye, then over the eyes of the unit."""
    weights = volume_weights(cohort)
    out = np.zeros((len(cohort.names), mean.shape[1]))
    np.add.at(out, cohort.unit, weights[:, None] * mean.astype(np.float64))
    return out


def volume_weights(cohort: Cohort) -> Floats:
    """`[V]`: what each volume counts in its unit; the weights of a unit add up to 1. Scans of unknown side are one
    more eye."""
    eyes = np.array([str(row["laterality"]) for row in cohort.volumes])
    keys = np.array([f"{u} {eye}" for u, eye in zip(cohort.unit.tolist(), eyes.tolist(), strict=True)])
    _, number, scans = np.unique(keys, return_inverse=True, return_counts=True)
    eyes_of = np.zeros(len(cohort.names))
    first = np.unique(number, return_index=True)[1]
    np.add.at(eyes_of, cohort.unit[first], 1)
    weights: Floats = 1 / (scans[number] * eyes_of[cohort.unit])
    return weights


def _over_folds(
    cohort: Cohort, splits: Sequence[Split], predict: Callable[[Ints, Ints], tuple[Floats, float]]
) -> Predictions:
    """Predictions of the units that each split tests, trained on all its others."""
    units, values, fold, chosen = [], [], [], []
    for number, split in enumerate(splits):
        test = split.rows("test")
        train = np.sort(np.concatenate([split.rows("train"), split.rows("val")]))
        assert not set(cohort.groups[train].tolist()) & set(cohort.groups[test].tolist()), "a person on two sides"
        found, how = predict(train, test)
        units.append(test)
        values.append(found)
        fold.append(np.full(len(test), number))
        chosen.append(float(how))
    order = np.argsort(np.concatenate(units))
    return Predictions(np.concatenate(units)[order], np.concatenate(values)[order], np.concatenate(fold)[order], chosen)
