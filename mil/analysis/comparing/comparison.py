"""Compares models on the same slides: tests of AUROC and of decisions, every main score's difference with its interval.

The result is strict JSON: what is not defined is null with its reason. Not here: reading and joining (.reading,
.joining), the tests (pathray.stats.comparing), the figure and the page (.forest, .output).
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.analysis.comparing.correction import correct
from mil.analysis.comparing.joining import Joined
from mil.analysis.comparing.resampling import Drawn, draw_scores
from mil.analysis.comparing.seed_delong import delong_of_seeds
from pathray.stats.classification import CLASS_SCORES, ClassifiedRows, classification_set
from pathray.stats.comparing.mcnemar import clustered_mcnemar, mcnemar
from pathray.stats.comparing.scores import bootstrap_p_value
from pathray.stats.estimates import ScoreSet, estimate_of
from pathray.stats.numeric import regression_set

Floats = npt.NDArray[np.float64]
Json = dict[str, Any]
LOWER_IS_BETTER = ("log_loss", "brier", "ece", "mae")
METHODS = {
    "slides": "Slides are joined by slide_id. Intervals and tests treat the slides of a patient as dependent.",
    "scores": "Percentile bootstrap of whole patients, the same resamples for all models; p-value: the smallest level "
    "whose interval of the difference excludes 0.",
    "delong": "DeLong 1988, over patients by Obuchowski 1997, of each class against the rest (of two, the second).",
    "mcnemar": "McNemar over slides, exact below 25 discordant ones.",
    "mcnemar_patients": "Exact over patients: models that do not differ may be swapped within any patient.",
    "correction": "p_holm and p_bh: each test and score, over all pairs of models (Holm; Benjamini-Hochberg).",
    "seeds": "A score is the mean over a model's seeds. Resamples draw patients, and of S seeds S − 1 with "
    "replacement. DeLong's variance includes that of seeds. McNemar judges the mean probabilities over seeds.",
}


def compare_models(joined: Joined, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Json:
    """Scores of each model with intervals, and of each pair a, b: DeLong, McNemar, the differences a − b."""
    sets = {name: [score_set(joined, one) for one in values] for name, values in joined.values.items()}
    drawn = draw_scores(sets, joined.patients, resamples=resamples, seed=seed)
    pairs = [_pair(joined, drawn, a, b, level) for a, b in combinations(joined.values, 2)]
    correct(pairs)
    models = {
        name: {
            "files": list(joined.files[name]), "seeds": len(joined.values[name]), "left_out": joined.left_out[name],
            "scores": {score: _told(one, level) for score, one in found.items()},
        }
        for name, found in drawn.items()
    }  # fmt: skip
    return {
        "slides": len(joined.names), "patients": len(set(joined.patients.tolist())), "classes": list(joined.classes),
        "positive_class": joined.classes[1] if len(joined.classes) == 2 else None, "level": level,
        "resamples": resamples, "seed": seed, "methods": METHODS, "models": models, "pairs": pairs,
    }  # fmt: skip


def score_set(joined: Joined, values: Floats) -> ScoreSet:
    """The main scores of one seed's values `[N, K]`. Of two classes those of the second have plain names; of more there
    are their means (`…_macro`) and each class's (`score/class`)."""
    if not joined.classes:
        return regression_set(joined.truth, values[:, 0])
    every = classification_set(ClassifiedRows.of(joined.truth.astype(np.int64), values, joined.classes))
    if len(joined.classes) > 2:
        return every
    own = {f"{name}/{joined.classes[1]}": name for name in CLASS_SCORES}
    dropped = {f"{name}/{joined.classes[0]}" for name in CLASS_SCORES} | {f"{name}_macro" for name in CLASS_SCORES}

    def named(found: Any) -> dict[str, Any]:
        return {own.get(key, key): value for key, value in found.items() if key not in dropped}

    return ScoreSet(every.n, lambda w: named(every.values(w)), named(every.reasons))


def _told(one: Drawn, level: float) -> Json:
    """A model's score; with several seeds also each seed's value and their spread."""
    out: Json = dict(one.estimate(level).as_json())
    if one.each.size > 1:
        known = one.each[np.isfinite(one.each)]
        spread = {"std": known.std(ddof=1), "min": known.min(), "max": known.max()} if known.size > 1 else {}
        out["over_seeds"] = {
            "each": [float(x) if np.isfinite(x) else None for x in one.each],
            **{name: float(x) for name, x in spread.items()},
        }
    return out


def _pair(joined: Joined, drawn: dict[str, dict[str, Drawn]], a: str, b: str, level: float) -> Json:
    scores = {
        score: _difference(drawn[a][score], drawn[b][score], level, score) for score in drawn[a] if score in drawn[b]
    }
    return {"a": a, "b": b, **_tests(joined, joined.values[a], joined.values[b], level), "scores": scores}


def _difference(a: Drawn, b: Drawn, level: float, score: str) -> Json:
    """a − b, its interval and p-value, as `pathray.stats.comparing.scores.compare_scores` has them for one seed."""
    resampled = a.resampled - b.resampled
    found = estimate_of(
        a.value - b.value, resampled, level=level, clusters=a.clusters, reason=a.reason or b.reason
    )  # fmt: skip
    return {
        "difference": found.as_json(),
        "p_value": None if found.reason else bootstrap_p_value(resampled),
        "lower_is_better": score in LOWER_IS_BETTER,
    }


def _tests(joined: Joined, a: Floats, b: Floats, level: float) -> Json:
    """DeLong by class, and McNemar in both forms; null with its reason for a regression."""
    if not joined.classes:
        why = {"p_value": None, "reason": "the predictions are numbers"}
        return {"delong": {}, "mcnemar": why, "mcnemar_patients": why}
    classes = list(enumerate(joined.classes))[1 if len(joined.classes) == 2 else 0 :]
    delong = {
        name: delong_of_seeds(joined.truth == k, a[:, :, k], b[:, :, k], joined.patients, level=level)
        for k, name in classes
    }
    right_a, right_b = (values.mean(axis=0).argmax(axis=1) == joined.truth for values in (a, b))
    return {
        "delong": {name: asdict(test) for name, test in delong.items()},
        "mcnemar": asdict(mcnemar(right_a, right_b)),
        "mcnemar_patients": asdict(clustered_mcnemar(right_a, right_b, joined.patients)),
    }
