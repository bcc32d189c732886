"""The page of a judged classifier for those who decide about its use: numbers, figures, thresholds, what was left out.

One HTML file without scripts. Not here: the figures (mil.judging.figures), the numbers (mil.judging.scores).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathray.reports.page import PagePicture, render_page
from pathray.urls import public_text

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS = {
    "roc": "Sensitivity against 1 − specificity over all thresholds; the band is the 95% interval over patients.",
    "precision_recall": "Precision against sensitivity over all thresholds.",
    "calibration": "A calibrated model lies on the diagonal. Larger points stand for more slides.",
    "probabilities": "What the model says of slides of each true class.",
    "confusion": "Slides by true and predicted class (the likeliest one), with shares of each true class.",
    "survival": "Share of patients without the event, with 95% bands. Risk is split at each model's median.",
    "regression": "Predicted against true values; exact predictions lie on the line.",
}
NAMES = {
    "auroc": "AUROC", "auroc_macro": "AUROC, mean of classes", "ece": "calibration error (ECE)", "f1": "F1",
    "mcc": "Matthews correlation", "log_loss": "log-loss", "average_precision": "average precision",
    "ppv": "PPV", "npv": "NPV", "brier": "Brier score", "c_index": "concordance (C-index)",
    "quadratic_kappa": "quadratic κ of grades", "mae_ranks": "mean error in grades",
}  # fmt: skip
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of a row is its name."""

    title: str
    lead: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def report_page(
    title: str, judged: Json, pictures: Mapping[str, bytes], *, facts: Sequence[tuple[str, str]] = (),
    folds: Mapping[str, Json] | None = None, left_out: Sequence[tuple[str, str]] = (), more: Sequence[Table] = (),
) -> str:  # fmt: skip
    """The page. `facts` come before the scores, `folds` are the scores of each fold's test slides, `left_out` slides
    and why, `more` tables that come first."""
    units = f"{judged['slides']:,} slides of {judged['patients']:,} patients"
    values = {
        "title": public_text(title),
        "lead": f"{units}. Intervals are 95% over patients.",
        "facts": [*((name, public_text(value)) for name, value in facts), *_headline(judged)],
        "notes": _notes(judged),
        "pictures": [_picture(name, data) for name, data in pictures.items()],
        "tables": [*more, *_tables(judged, folds or {})],
        "left_out": _by_reason(left_out),
    }
    return render_page("report.html.j2", values, TEMPLATES)


def in_words(score: Json, digits: int = 3) -> str:
    """A score with its interval, or why there is none."""
    if score["value"] is None:
        return f"not defined: {score['reason']}"
    if score["low"] is None:
        return f"{score['value']:.{digits}f} ({without_interval(score)})"
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def without_interval(score: Json) -> str:
    """Why a value has no interval. Some reasons begin with these words themselves."""
    return f"no interval: {str(score['reason']).removeprefix('no interval: ')}"


def name_of(score: str) -> str:
    return NAMES.get(score, score.replace("_", " "))


def _headline(judged: Json) -> list[tuple[str, str]]:
    from mil.judging.scores import headline

    return [(name_of(name), in_words(score)) for name, score in headline(dict(judged)).items()]


def _notes(judged: Json) -> list[str]:
    notes = []
    if "operating_points" in judged:
        notes.append(f"Thresholds were chosen on {judged['thresholds_chosen_on']}.")
    if why := judged.get("patients_as_units", {}).get("reason"):
        notes.append(f"There are no scores with patients as units: {why}.")
    return notes


def _tables(judged: Json, folds: Mapping[str, Json]) -> list[Table]:
    if "regression" in judged:
        rows = [(name_of(name), in_words(score)) for name, score in judged["regression"].items()]
        return [Table("Scores", "", ("score", "value [95% interval]"), rows), *_fold_table(folds)]
    if "survival" in judged:
        return [_survival_table(judged["survival"]), *_fold_table(folds)]
    report = judged["slides_as_units"]
    overall = [(name_of(name), in_words(score)) for name, score in report["overall"].items()]
    classes = list(report["per_class"])
    scores = list(report["per_class"][classes[0]])
    per_class = [(c, *(in_words(report["per_class"][c][s]) for s in scores)) for c in classes]
    tables = [
        *_point_table(judged),
        Table("All scores, slides as units", "", ("score", "value [95% interval]"), overall),
        Table("By class", "Each class against the rest.", ("class", *map(name_of, scores)), per_class),
    ]
    patients = judged["patients_as_units"]
    if "overall" in patients:
        lead = f"{patients['patients']} patients; the slides of a patient are joined by their {patients['joined_by']}."
        rows = [(name_of(name), in_words(score)) for name, score in patients["overall"].items()]
        tables.append(Table("All scores, patients as units", lead, ("score", "value [95% interval]"), rows))
    return [*tables, *_fold_table(folds)]


def _fold_table(folds: Mapping[str, Json]) -> list[Table]:
    if not folds:
        return []
    names = list(next(iter(folds.values())))
    rows = [(fold, *(_number(found.get(name)) for name in names)) for fold, found in folds.items()]
    return [Table("Folds", "Each fold's own test slides.", ("fold", *map(name_of, names)), rows)]


def _survival_table(survival: Json) -> Table:
    test = survival["log_rank"]
    told = f"log-rank test: p {test['p_value']:.3g}" if test["p_value"] is not None else f"no test: {test['reason']}"
    rows = []
    for name, group in survival["groups"].items():
        median = "not reached" if group["curve"]["median"] is None else f"{group['curve']['median']:.4g}"
        rows.append((name, str(group["patients"]), str(group["events"]), median))
    return Table("Groups", f"Patients as units; {told}.", ("group", "patients", "events", "median survival"), rows)


def _point_table(judged: Json) -> list[Table]:
    points = judged.get("operating_points", [])
    if not points:
        return []
    rates = ("sensitivity", "specificity", "ppv", "npv")
    rows = []
    for point in points:
        if point["threshold"] is None:
            rows.append((point["rule"], point["reason"], "", "", "", "", ""))
            continue
        told = (in_words(point[rate], 2) for rate in rates)
        rows.append((point["rule"], f"{point['threshold']:.3f}", *told, point["stability_grade"] or ""))
    lead = (
        "Stability: by how much sensitivity changes when the threshold moves by .01: A up to .02, B up to .05, C up to"
        f" .10, D more. Thresholds were chosen on {judged['thresholds_chosen_on']}."
    )
    return [Table("Operating points", lead, ("rule", "threshold", *map(name_of, rates), "stability"), rows)]


def _picture(name: str, data: bytes) -> PagePicture:
    source = "data:image/png;base64," + b64encode(data).decode()
    return PagePicture(source, name.replace("_", " "), CAPTIONS.get(name, ""))


def _by_reason(left_out: Sequence[tuple[str, str]]) -> list[tuple[str, int, str]]:
    reasons: dict[str, list[str]] = {}
    for name, why in left_out:
        reasons.setdefault(why, []).append(name)
    return [(why, len(names), ", ".join(names[:3])) for why, names in sorted(reasons.items())]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
