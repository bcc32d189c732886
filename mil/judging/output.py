"""Writes what judging has found into a folder: metrics.json, figures, report.html and a section of summary.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mil.judging import figures
from mil.judging.page import Table, in_words, name_of, report_page
from mil.judging.predictions import Predictions
from mil.judging.scores import headline, judge
from mil.judging.survival_figure import draw_survival
from pathray.reports.summary import Picture, Summary, write_summary
from pathray.stats.patients import How
from pathray.store.storage import Storage

METRICS, REPORT = "metrics.json", "report.html"


def write_judgement(
    store: Storage, predictions: Predictions, chosen_on: Predictions | None, *, title: str,
    facts: Sequence[tuple[str, str]] = (), folds: Mapping[str, Any] | None = None,
    left_out: Sequence[tuple[str, str]] = (), how: How = "mean", resamples: int = 2000, seed: int = 0,
    models: Mapping[str, str] | None = None, ordinal: bool = False, tables: Sequence[Table] = (),
) -> dict[str, object]:  # fmt: skip
    """Judge predictions and write everything; returns the main files by what they are."""
    judged = judge(predictions, chosen_on, how=how, resamples=resamples, seed=seed, ordinal=ordinal)
    pictures = draw_all(predictions, judged, seed)
    for name, data in pictures.items():
        store.write_bytes(f"{name}.png", data)
    text = json.dumps(judged, indent=1, sort_keys=True, allow_nan=False)
    store.write_bytes(METRICS, text.encode() + b"\n")
    page = report_page(title, judged, pictures, facts=facts, folds=folds, left_out=left_out, more=tables)
    store.write_bytes(REPORT, page.encode())
    shown = {name_of(name): in_words(score) for name, score in headline(judged).items()}
    files = {"report": store.join(REPORT), "metrics": store.join(METRICS)}
    about: dict[str, object] = {"slides": judged["slides"], "patients": judged["patients"], **dict(facts), **shown}
    write_summary(
        store.url,
        Summary(
            title, about, skipped=list(left_out), files=files | {f"model of {k}": v for k, v in (models or {}).items()},
            pictures=[Picture(store.join(f"{name}.png"), name.replace("_", " ")) for name in pictures],
        ),
    )  # fmt: skip
    return dict(files)


def draw_all(predictions: Predictions, judged: dict[str, Any], seed: int) -> dict[str, bytes]:
    """The figures by name."""
    if "survival" in judged:
        return {"survival": draw_survival(judged)}
    if not predictions.classes:
        return {"regression": figures.draw_regression(predictions)}
    return {
        "roc": figures.draw_curves(predictions, judged, "roc", seed=seed),
        "precision_recall": figures.draw_curves(predictions, judged, "pr", seed=seed),
        "calibration": figures.draw_calibration(predictions, judged),
        "probabilities": figures.draw_probabilities(predictions),
        "confusion": figures.draw_confusion(judged),
    }
