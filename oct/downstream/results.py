"""What a downstream job writes: predictions.csv, metrics.json, a page of bars, and what summary.md says.

Not here: how scores are computed (pathray.stats.scores).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from oct.downstream.cohort import Cohort, Note
from oct.downstream.probing import Predictions
from pathray.reports.summary import Picture, Summary
from pathray.stats.bootstrap import Interval
from pathray.store.storage import Storage

PREDICTIONS, METRICS, CHART = "predictions.csv", "metrics.json", "scores.png"
Scores = Mapping[str, Interval]


def write_predictions(store: Storage, cohort: Cohort, found: Mapping[str, Predictions]) -> str:
    """A row per volume and model: path, person, model, fold, label, predicted, and a probability per class.

    Volumes of one unit have its prediction. Returns the file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "person_id", "model", "fold", "label", "predicted", *(f"p_{c}" for c in cohort.classes)])
    for model, predictions in found.items():
        place = {int(unit): i for i, unit in enumerate(predictions.units)}
        for volume, unit in zip(cohort.volumes, cohort.unit.tolist(), strict=True):
            if unit in place:
                writer.writerow(
                    [volume["path"], volume["person"], model, *_cells(cohort, predictions, unit, place[unit])]
                )
    store.write_bytes(PREDICTIONS, text.getvalue().encode())
    return store.join(PREDICTIONS)


def _cells(cohort: Cohort, predictions: Predictions, unit: int, i: int) -> list[object]:
    fold, value, truth = int(predictions.fold[i]), predictions.values[i], cohort.truth[unit]
    if not cohort.classes:
        return [fold, f"{truth:.6g}", f"{float(value):.6g}"]
    label, predicted = cohort.classes[int(truth)], cohort.classes[int(value.argmax())]
    return [fold, label, predicted, *(f"{p:.6f}" for p in value)]


def write_metrics(store: Storage, cohort: Cohort, scores: Mapping[str, Scores], facts: Mapping[str, Any]) -> str:
    """metrics.json: the facts, and per model (or difference of models) each score with its interval."""
    plain = {model: {name: _plain(i) for name, i in own.items()} for model, own in scores.items()}
    what = {"units": len(cohort.names), "persons": cohort.persons, "volumes": len(cohort.volumes)}
    whole = {**facts, **what, "classes": list(cohort.classes), "scores": plain}
    store.write_bytes(METRICS, json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n")
    return store.join(METRICS)


def summary_of(
    title: str, cohort: Cohort, scores: Mapping[str, Scores], *, failed: Sequence[Note], facts: Mapping[str, object],
    settings: Mapping[str, object], files: Mapping[str, str], pictures: Sequence[Picture] = (),
) -> Summary:  # fmt: skip
    """A section of summary.md: the scores in words, what was left out and why."""
    lines = {f"{model}: {name}": show(i) for model, own in scores.items() for name, i in own.items()}
    return Summary(
        title, {"labels": str(cohort), **facts, **lines}, settings, failed=failed, notes=cohort.notes, files=files,
        pictures=pictures,
    )  # fmt: skip


def show(interval: Interval) -> str:
    """0.812 [0.744, 0.871], over persons."""
    if not math.isfinite(interval.low):
        return f"{interval.estimate:.3f} (no interval)"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def draw_scores(scores: Mapping[str, Scores], title: str) -> bytes:
    """A PNG: each score of every model with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pathray.draw.canvas import ACCENTS, INK
    from pathray.draw.charts import plain_axes

    names = list(next(iter(scores.values())))
    figure = Figure(figsize=(3.6 * len(names), 1.2 + 0.4 * len(scores)), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    for k, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), k + 1)
        for i, own in enumerate(scores.values()):
            one, colour = own[name], ACCENTS[i % len(ACCENTS)]
            if math.isfinite(one.low):
                axes.plot([one.low, one.high], [i, i], color=colour, linewidth=2.0)
            axes.plot([one.estimate], [i], color=colour, marker="o", markersize=5)
        plain_axes(axes)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=11, color=INK)
        axes.set_yticks(range(len(scores)), list(scores) if k == 0 else [""] * len(scores))
        axes.set_ylim(len(scores) - 0.5, -0.5)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _plain(interval: Interval) -> dict[str, Any]:
    values = {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "persons": interval.n}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
