"""What predictions are worth: every score with its interval over patients, thresholds, calibration, patients as units.

The result is plain values and strict JSON: what is not defined is null with its reason. Not here: the statistics
(pathray.stats), figures (mil.judging.figures).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from mil.judging.predictions import Predictions
from mil.judging.survival import judge_survival
from pathray.errors import UserError
from pathray.stats.calibrating.bins import brier_parts, reliability_bins
from pathray.stats.classification import classification_report
from pathray.stats.estimates import estimate_scores
from pathray.stats.numeric import ordinal_set
from pathray.stats.operating_points import Rule, Threshold, choose_threshold, operating_point
from pathray.stats.patients import How, aggregate
from pathray.stats.probability_scores import top_label
from pathray.stats.scores import intervals, regression_scores

RULES: tuple[Rule, ...] = ("youden", "sensitivity", "specificity")
HEADLINE = ("auroc", "auroc_macro", "balanced_accuracy", "accuracy", "f1", "f1_macro", "log_loss", "ece")
Json = dict[str, Any]


def judge(
    predictions: Predictions, chosen_on: Predictions | None = None, *, how: How = "mean", resamples: int = 2000,
    seed: int = 0, ordinal: bool = False,
) -> Json:  # fmt: skip
    """All figures of predictions, as strict JSON. `chosen_on`: the predictions that thresholds are chosen on, such as
    those of validation slides; None: the same, which is optimistic and said so.

    Intervals are over patients. `ordinal`: the classes are grades in ascending order. `patients` has the scores of
    patients as units, their slides joined by `how`.
    """
    out: Json = {"slides": len(predictions), "patients": len(set(predictions.patients.tolist()))}
    if predictions.events is not None:
        return out | {"survival": judge_survival(predictions, resamples=resamples, seed=seed)}
    if not predictions.classes:
        return out | {"regression": _regression(predictions, resamples, seed)}
    options = {"resamples": resamples, "seed": seed}
    numbers = predictions.truth.astype(np.int64)
    report = classification_report(
        numbers, predictions.values, predictions.classes, predictions.patients, **options  # type: ignore[arg-type]
    )  # fmt: skip
    out |= {"slides_as_units": report.as_json(), "calibration": _calibration(predictions)}
    if ordinal:
        grades = ordinal_set(numbers, predictions.values.argmax(axis=1), len(predictions.classes))
        found = estimate_scores(grades, predictions.patients, **options)
        out["grades"] = {name: one.as_json() for name, one in found.items()}
    out["patients_as_units"] = _of_patients(predictions, how, options)
    if len(predictions.classes) == 2:
        out["operating_points"] = _operating_points(predictions, chosen_on or predictions, options)
        out["thresholds_chosen_on"] = _told(predictions) if chosen_on else "the same slides: optimistic"
    return out


def _told(predictions: Predictions) -> str:
    several = predictions.folds is not None and len(np.unique(predictions.folds)) > 1
    return "validation slides" + (" of all folds together: mildly optimistic" if several else "")


def headline(judged: Json) -> dict[str, Json]:
    """The scores that a summary shows: {value, low, high, reason} by name, those of slides."""
    if "regression" in judged:
        return dict(judged["regression"])
    if "survival" in judged:
        return {"c_index": judged["survival"]["c_index"]}
    overall, binary = judged["slides_as_units"]["overall"], len(judged["slides_as_units"]["classes"]) == 2
    shown = [name for name in HEADLINE if name in overall and not (binary and name.endswith("_macro"))]
    return dict(judged.get("grades", {})) | {name: overall[name] for name in shown}


def _of_patients(predictions: Predictions, how: How, options: dict[str, int]) -> Json:
    """Scores of patients; null with its reason where patients have slides of several classes."""
    try:
        joined = aggregate(predictions.patients, predictions.truth, predictions.values, how)
    except ValueError as e:
        return {"reason": str(e)}
    report = classification_report(joined.truth, joined.probabilities, predictions.classes, **options)  # type: ignore[arg-type]
    return {"joined_by": how, "patients": len(joined.keys), **report.as_json()}


def _operating_points(predictions: Predictions, chosen_on: Predictions, options: dict[str, int]) -> list[Json]:
    if chosen_on.classes != predictions.classes:
        found, expected = chosen_on.classes, predictions.classes
        raise UserError("thresholds of other classes", file=chosen_on.file, found=found, expected=expected)
    points = []
    for rule in RULES:
        threshold: Threshold = choose_threshold(chosen_on.truth, chosen_on.values[:, 1], rule)
        point = operating_point(
            predictions.truth, predictions.values[:, 1], threshold, predictions.patients, **options  # type: ignore[arg-type]
        )  # fmt: skip
        points.append(point.as_json())
    return points


def _calibration(predictions: Predictions) -> Json:
    """Reliability of the positive class's probability; of the likeliest class's where there are more than two."""
    happened, probability = events_of(predictions)
    bins = {by: [asdict(b) for b in reliability_bins(happened, probability, by=by)] for by in ("width", "count")}
    of = "the second class" if len(predictions.classes) == 2 else "the likeliest class"
    return {"of": of, "bins": bins, "brier": asdict(brier_parts(happened, probability))}


def events_of(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Events and their probabilities `[N]`, as `calibration` takes them."""
    if len(predictions.classes) == 2:
        return predictions.truth, predictions.values[:, 1]
    probability, right = top_label(predictions.truth.astype(np.int64), predictions.values)
    return right, probability


def _regression(predictions: Predictions, resamples: int, seed: int) -> Json:
    scores = regression_scores(predictions.truth, predictions.values[:, 0])
    found = intervals(scores, predictions.patients, resamples=resamples, seed=seed)
    out: Json = {}
    for name, one in found.items():
        numbers = {"value": one.estimate, "low": one.low, "high": one.high}
        plain = {key: float(v) if np.isfinite(v) else None for key, v in numbers.items()}
        out[name] = {**plain, "clusters": one.n, "reason": None if None not in plain.values() else "not defined"}
    return out
