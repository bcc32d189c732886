"""Compares experiments on the same slides: scores of each, differences and tests of every pair, corrected for many.

Not here: reading tables (mil.comparison.experiments), the figure and the page (mil.comparison.output).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mil.comparison.accuracy import compare_accuracies
from mil.comparison.auroc import compare_aurocs
from mil.comparison.experiments import Experiment
from mil.comparison.joining import Joined, join_slides
from mil.comparison.method import method_of
from mil.comparison.over_seeds import estimate_over_seeds
from mil.comparison.resampling import Resampled, estimate_difference, estimate_mean, resample
from mil.config import LOWER_IS_BETTER
from pathray.errors import UserError
from pathray.stats.comparing.multiplicity import benjamini_hochberg, holm

Json = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """What a comparison found, as strict JSON.

    experiments: by name `files`, `seeds`, `left_out` (slides) and `scores`: value, low, high, each, std, min, max.
    pairs: `a`, `b`; by score `difference` (a − b), `p_value`, `p_holm`, `p_bh`, `with_seeds` (the same, also over
    seeds), `better` (a name, or None where no difference is shown); `delong` by class and `mcnemar`, with classes.
    """

    primary: str
    level: float
    slides: int
    patients: int
    experiments: dict[str, Json]
    pairs: list[Json]
    method: dict[str, str]
    notes: list[str]

    def as_json(self) -> Json:
        return dict(vars(self))


def compare(
    experiments: Sequence[Experiment], *, only_common: bool = False, primary: str | None = None, level: float = 0.95,
    resamples: int = 2000, seed: int = 0,
) -> Compared:  # fmt: skip
    """Compare experiments by every main score (AUROC, accuracy …; R², C-index) on the same resampled patients.

    `primary`: the score that the figure and the words are about, by default the first. UserError as in `join_slides`,
    and for a score that these predictions do not have.
    """
    joined = join_slides(experiments, only_common)
    found = [resample(one, resamples=resamples, seed=seed) for one in joined.experiments]
    names = list(found[0].whole)
    if primary is not None and primary not in names:
        raise UserError("no such score", key="primary", found=primary, expected=" | ".join(names))
    both = list(combinations(range(len(found)), 2))
    pairs = [_pair(joined, found, i, j, level) for i, j in both]
    for family in _families(pairs):
        _adjust(family)
    for pair in pairs:
        for name, one in pair["scores"].items():
            one["better"] = _better(pair, name, one, 1 - level)
    scores = [{name: _of_seeds(one, name, level) for name in names} for one in found]
    patients = len(set(joined.first.patients.tolist()))
    return Compared(
        primary or names[0], level, len(joined.first), patients, _experiments(joined, scores), pairs,
        method_of(joined, resamples, len(pairs)), _notes(joined, resamples, len(pairs), level),
    )  # fmt: skip


def _pair(joined: Joined, found: Sequence[Resampled], i: int, j: int, level: float) -> Json:
    a, b = joined.experiments[i], joined.experiments[j]
    out: Json = {"a": a.name, "b": b.name, "scores": {}}
    single = [one.name for one in (a, b) if len(one.seeds) < 2]
    for name in found[i].whole:
        difference, p = estimate_difference(found[i], found[j], name, level)
        if single:
            seeds: Json = {"difference": None, "p_value": None, "reason": f"one seed of {' and of '.join(single)}"}
        else:
            wider, p_seeds = estimate_over_seeds(found[i], found[j], name, level)
            seeds = {"difference": wider.as_json(), "p_value": p_seeds}
        out["scores"][name] = {"difference": difference.as_json(), "p_value": p, "with_seeds": seeds}
    if joined.first.classes:
        out |= {"delong": compare_aurocs(a, b, level), "mcnemar": compare_accuracies(a, b)}
    return out


def _families(pairs: Sequence[Json]) -> Iterator[list[Json]]:
    """The tests that are corrected together: those of one kind (and score) over all pairs, with DeLong's also over
    classes."""
    for name in pairs[0]["scores"]:
        yield [pair["scores"][name] for pair in pairs]
        yield [pair["scores"][name]["with_seeds"] for pair in pairs]
    if "delong" in pairs[0]:
        yield [test for pair in pairs for test in pair["delong"].values()]
        for units in ("slides", "patients"):
            yield [pair["mcnemar"][units] for pair in pairs]


def _adjust(tests: Sequence[Json]) -> None:
    """Add `p_holm` and `p_bh` to the tests of a family."""
    p = [test["p_value"] for test in tests]
    for test, by_holm, by_bh in zip(tests, holm(p), benjamini_hochberg(p), strict=True):
        test |= {"p_holm": by_holm, "p_bh": by_bh}


def _better(pair: Json, name: str, one: Json, alpha: float) -> str | None:
    """The experiment that is better by Holm's p-value: the one over seeds where there are several."""
    seeds = one["with_seeds"]
    p, value = (one if seeds["difference"] is None else seeds)["p_holm"], one["difference"]["value"]
    if p is None or p >= alpha or not value:
        return None
    return str(pair["a"] if (value > 0) != is_lower_better(name) else pair["b"])


def is_lower_better(score: str) -> bool:
    return score in (*LOWER_IS_BETTER, "ece")


def _of_seeds(one: Resampled, name: str, level: float) -> Json:
    """The mean over seeds with its interval, and the seeds' values with their spread."""
    each = [float(v) if np.isfinite(v) else None for v in one.whole[name]]
    known = np.array([v for v in each if v is not None])
    std = float(known.std(ddof=1)) if known.size > 1 else None
    ends = (float(known.min()), float(known.max())) if known.size else (None, None)
    return {**estimate_mean(one, name, level).as_json(), "each": each, "std": std, "min": ends[0], "max": ends[1]}


def _experiments(joined: Joined, scores: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    out = {}
    for one, found in zip(joined.experiments, scores, strict=True):
        left = joined.left_out[one.name]
        out[one.name] = {"files": one.files, "seeds": len(one.seeds), "left_out": left, "scores": dict(found)}
    return out


def _notes(joined: Joined, resamples: int, pairs: int, level: float) -> list[str]:
    out = []
    if (seeds := min(len(one.seeds) for one in joined.experiments)) < 2:
        out.append("An experiment has one seed: how much its scores vary from training to training is not known.")
    elif seeds < 5:
        out.append(f"There are {seeds} seeds; five or more tell their spread better.")
    if 2 * pairs / (resamples + 1) >= 1 - level:
        out.append(
            f"{resamples} resamples are too few for {pairs} pairs: no adjusted p-value can be below {1 - level:.2g}."
        )
    for one in joined.experiments:
        if left := joined.left_out[one.name]:
            out.append(f"{len(left)} slides of {one.name} are left out: other tables do not have them.")
    return out
