"""The average performance drop: what a classifier loses when class and centre go together in its training set.

    APD = mean over repetitions of mean_{s ≥ 1}(acc_s / acc_0) − 1        (Kömen et al. 2025, arXiv 2507.17845)

with acc_s the balanced accuracy of a logistic regression trained on split s. **0 is best, negative is worse**: to be
maximised. Not here: the splits (pathray.evaluation.metrics.apd_splits) and the solver
(pathray.evaluation.metrics.logistic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics.apd_splits import Design, Repetition, design, measure_cramers_v, repetitions
from pathray.evaluation.metrics.logistic import Rotated, fit_paths, logits, predict_classes
from pathray.evaluation.metrics.robustness_index import normalise
from pathray.stats.bootstrap import Interval, t_interval

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

CS = tuple(float(c) for c in 10.0 ** np.linspace(-8, 4, 15))
REPETITIONS, SEED = 20, 1000
BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class PerformanceDrop:
    """`apd_id`, `apd_ood` and, of their mean per repetition, `apd_avg`, each with a 95% t interval over repetitions,
    cut at −1; `apd_ood` is None without out-of-domain rows, and `apd_avg` is then that of the in-domain test.
    `accuracy_id` and `accuracy_ood` `[repetitions, splits]`, `correlation` the realised Cramér's V per split, `design`
    the plan used."""

    apd_id: Interval
    apd_ood: Interval | None
    apd_avg: Interval
    accuracy_id: Doubles
    accuracy_ood: Doubles | None
    correlation: tuple[float, ...]
    design: Design


def average_performance_drop(
    features: Floats,
    labels: Labels,
    centers: Labels,
    slides: Labels,
    ood: Bools,
    *,
    name: str = "",
    classes: Sequence[str] = (),
    repeats: int = REPETITIONS,
    seed: int = SEED,
    cs: Sequence[float] = CS,
) -> PerformanceDrop:
    """Of features `[N, D]` (any scale: they are normalised here) with a class, centre, slide and subset per row.

    name: the dataset whose plan is meant, if it has one; classes: in the plan's order. UserError for features that are
    not finite, Unfit where the data cannot fill even the smallest plan.
    """
    if repeats < 2:
        raise UserError("an interval needs at least two repetitions", key="repeats", found=repeats)
    unit = normalise(features)
    inside = np.flatnonzero(~ood)
    mine: tuple[Labels, Labels, Labels] = labels[inside], centers[inside], slides[inside]
    chosen = design(name, *mine, classes=classes)
    keep = np.isin(mine[0], chosen.classes) & np.isin(mine[1], chosen.centers)
    inside, mine = inside[keep], (mine[0][keep], mine[1][keep], mine[2][keep])
    draws = list(repetitions(chosen, *mine, count=repeats, seed=seed))
    correlation = tuple(
        float(np.mean([measure_cramers_v(draw.train[s], mine[0], mine[1]) for draw in draws]))
        for s in range(chosen.plan.splits)
    )
    outside = np.flatnonzero(ood & np.isin(labels, chosen.classes))
    codes = {kind: j for j, kind in enumerate(chosen.classes)}
    y, y_ood = (np.array([codes[k] for k in values], np.int64) for values in (mine[0], labels[outside]))
    rotated = Rotated(unit[inside])
    accuracy = _accuracies(rotated, y, rotated.place(unit[outside]), y_ood, draws, cs)
    of_ood = accuracy[1] if len(outside) else None
    drops = [_drops(values) for values in accuracy[: 2 if len(outside) else 1]]
    return PerformanceDrop(
        _interval(drops[0]),
        _interval(drops[1]) if of_ood is not None else None,
        _interval(np.mean(drops, axis=0)),
        accuracy[0],
        of_ood,
        correlation,
        chosen,
    )


def _interval(drops: Doubles) -> Interval:
    """The t interval, cut at −1: more than all of its accuracy no classifier loses."""
    if not np.isfinite(drops).all():
        message = "a classifier without any correct guess on the first split: a drop has no meaning"
        raise Unfit(message, key="apd", found=f"{int((~np.isfinite(drops)).sum())} of {len(drops)} repetitions")
    found = t_interval(drops)
    return replace(found, low=max(-1.0, found.low))


def _drops(accuracy: Doubles) -> Doubles:
    """`[repetitions, splits]` → `[repetitions]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        drops: Doubles = (accuracy[:, 1:] / accuracy[:, :1]).mean(axis=1) - 1
    return drops


def _accuracies(
    rotated: Rotated, y: Ints, x_ood: Singles, y_ood: Ints, draws: Sequence[Repetition], cs: Sequence[float]
) -> tuple[Doubles, Doubles]:
    """Balanced accuracies `[repetitions, splits]` on both tests, with the smallest of the strengths that are best on
    the validation part."""
    splits, classes = len(draws[0].train), int(y.max()) + 1
    of_id, of_ood = np.zeros((len(draws), splits)), np.full((len(draws), splits), np.nan)
    columns = (1 if classes == 2 else classes) * splits
    step = max(1, BLOCK_BYTES // (4 * 6 * columns * (len(y) + len(y_ood))))
    for first in range(0, len(draws), step):
        some = draws[first : first + step]
        parts = [[_mask(rows, len(y)) for d in some for rows in part(d)] for part in (_train, _validation, _test)]
        train, validation, test = (np.stack(masks) for masks in parts)
        best = np.full(len(train), -1.0)
        found_id, found_ood = np.zeros(len(train)), np.full(len(train), np.nan)
        for _, w, b in fit_paths(rotated, y, train, cs):
            guess = predict_classes(logits(rotated.x, w, b))
            score = balanced(guess, y, validation, classes)
            better = score > best + 1e-12
            best[better] = score[better]
            found_id[better] = balanced(guess[better], y, test[better], classes)
            if len(y_ood) and better.any():
                outside = predict_classes(logits(x_ood, w[better], b[better]))
                found_ood[better] = balanced(outside, y_ood, np.ones(outside.shape, bool), classes)
        of_id[first : first + step] = found_id.reshape(len(some), splits)
        of_ood[first : first + step] = found_ood.reshape(len(some), splits)
    return of_id, of_ood


def balanced(guess: Ints, y: Ints, among: Bools, classes: int) -> Doubles:
    """Mean recall `[P]` of guesses `[P, N]` over the classes that occur among the rows `among` `[P, N]`."""
    right = (guess == y) & among
    recalls = np.full((classes, len(guess)), np.nan)
    for c in range(classes):
        mine = y == c
        there = among[:, mine].sum(axis=1)
        np.divide(right[:, mine].sum(axis=1), there, out=recalls[c], where=there > 0)
    mean: Doubles = np.nanmean(recalls, axis=0)
    return mean


def _mask(rows: Ints, n: int) -> Bools:
    mask = np.zeros(n, bool)
    mask[rows] = True
    return mask


def _train(draw: Repetition) -> Sequence[Ints]:
    return draw.train


def _validation(draw: Repetition) -> Sequence[Ints]:
    return draw.validation


def _test(draw: Repetition) -> Sequence[Ints]:
    return [draw.test] * len(draw.train)
