"""What several seeds of one training say together: the mean of each score, its spread over seeds, and its interval.

Every seed tests the same slides of the same splits, so resampled patients count alike in all of them. Not here: the
scores of one seed (mil.results.folds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mil.judging.page import Table, name_of
from mil.judging.predictions import Predictions
from mil.judging.scores import HEADLINE
from mil.judging.survival import patients_of
from pathray.errors import UserError
from pathray.stats.classification import ClassifiedRows, classification_set
from pathray.stats.estimates import ScoreSet, estimate_scores
from pathray.stats.scores import regression_scores
from pathray.stats.survival import concordance_set

SEEDS = "seeds.json"


def spread_of_seeds(by_seed: Mapping[int, Predictions], *, resamples: int, seed: int) -> dict[str, Any]:
    """Per score: `each` seed's value, their mean, standard deviation, least and greatest, and the 95% interval of the
    mean over patients. UserError where seeds tested different slides."""
    first = next(iter(by_seed.values()))
    for number, one in by_seed.items():
        if one.names.tolist() != first.names.tolist():
            message, expected = f"seed {number} tested other slides", f"the {len(first)} of the first seed"
            raise UserError(message, file=one.file, found=f"{len(one)} slides", expected=expected)
    sets, clusters = zip(*(main_scores(one) for one in by_seed.values()), strict=True)
    estimates = estimate_scores(mean_set(sets), clusters[0], resamples=resamples, seed=seed)
    whole = np.ones((1, sets[0].n))
    values = {name: [float(one.values(whole)[name][0]) for one in sets] for name in estimates}
    out = {}
    for name, estimate in estimates.items():
        x = [v if np.isfinite(v) else None for v in values[name]]
        known = np.array([v for v in x if v is not None])
        spread = {
            "std": float(known.std(ddof=1)) if known.size > 1 else None,
            "min": float(known.min()) if known.size else None,
            "max": float(known.max()) if known.size else None,
        }
        out[name] = {"each": dict(zip(map(str, by_seed), x, strict=True)), **spread, **estimate.as_json()}
    return {"seeds": list(by_seed), "scores": out}


def mean_set(sets: Sequence[ScoreSet]) -> ScoreSet:
    """Each score's mean over seeds, on the same weights."""

    def values(w: Any) -> dict[str, Any]:
        each = [one.values(w) for one in sets]
        return {name: np.mean([found[name] for found in each], axis=0) for name in each[0]}

    return ScoreSet(sets[0].n, values, sets[0].reasons)


def seeds_table(spread: Mapping[str, Any]) -> Table:
    """The page's table: mean with its interval, deviation and range over seeds."""
    rows: list[tuple[str, ...]] = []
    for name, one in spread["scores"].items():
        if one["value"] is None:
            rows.append((name_of(name), f"not defined: {one['reason']}", "", ""))
            continue
        interval = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
        std = "" if one["std"] is None else f"{one['std']:.3f}"
        rows.append((name_of(name), f"{one['value']:.3f}{interval}", std, f"{one['min']:.3f} to {one['max']:.3f}"))
    lead = f"{len(spread['seeds'])} trainings on the same splits; the interval of their mean resamples patients."
    return Table("Seeds", lead, ("score", "mean [95% interval]", "deviation over seeds", "range"), rows)


def main_scores(one: Predictions) -> tuple[ScoreSet, Any]:
    """The main scores and the patients of each row."""
    if one.events is not None:
        units = patients_of(one)
        return concordance_set(units.time, units.event, units.risk, units.folds), np.arange(len(units.time))
    if not one.classes:
        numbers = regression_scores(one.truth, one.values[:, 0])
        return ScoreSet(len(one), lambda w: {name: score(w) for name, score in numbers.items()}), one.patients
    rows = ClassifiedRows.of(one.truth.astype(np.int64), one.values, one.classes)
    every = classification_set(rows)
    shown = {name: name for name in HEADLINE}
    if len(one.classes) == 2:  # the scores of the second class, instead of means over both
        shown = {n.removesuffix("_macro"): n for n in HEADLINE} | {n: f"{n}/{one.classes[1]}" for n in ("auroc", "f1")}

    def chosen(w: Any) -> dict[str, Any]:
        found = every.values(w)
        return {name: found[key] for name, key in shown.items() if key in found}

    reasons = {name: every.reasons[key] for name, key in shown.items() if key in every.reasons}
    return ScoreSet(every.n, chosen, reasons), one.patients
