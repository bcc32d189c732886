"""What the tables and lists of a robustness report say, in words and numbers ready to show.

Not here: the page that shows them (pathray.evaluation.report), the curves (pathray.evaluation.report_charts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathray.draw.charts import X
from pathray.evaluation.metric_names import MEANINGS, SPLIT, SPLITS, Meaning, MetricName, limits, list_metrics

Row = Mapping[str, Any]
Entry = tuple[str, str]  # a name, and what there is to say of it

OWN_COLUMNS = ("images seen", "tune index", "status")
TIME_COLUMNS = ("lag, images", "lag, s", "evaluator, s")
COLUMN_WORDS = {
    "ri": "Robustness index; ri_k: with how many neighbours.",
    "acc_knn": "Accuracy of those neighbours' vote on the class.",
    "clustering_score": "Clustering score: ari_class less ari_center, the agreement with classes and with centres.",
    "apd_avg": "Performance drop: apd_id at the training's own centres, apd_ood at others, apd_avg their mean.",
    "linear_id": "Linear probe; linear_ood: on out-of-domain patches.",
    "knn_id": "Nearest neighbours' probe; knn_ood: on out-of-domain patches.",
}


@dataclass(frozen=True)
class MetricLine:
    """A metric and its values, one per dataset; empty text where it was not computed."""

    meaning: Meaning
    values: list[str]


@dataclass(frozen=True)
class Newest:
    """The metrics of one evaluation, at `images` seen: a line per metric, a column per dataset."""

    images: int
    datasets: list[str]
    lines: list[MetricLine]


@dataclass(frozen=True)
class TableLine:
    """One evaluation; its status colours the line."""

    status: str
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """All evaluations: what columns mean, headings with their widths in columns, names of columns, and lines."""

    columns: list[Entry]
    headings: list[tuple[str, int]]
    names: list[str]
    lines: list[TableLine]


def summarize(rows: Sequence[Row], stopping: Row) -> list[Entry]:
    """How many evaluations there are, which is best, and what early stopping decided."""
    count = {status: sum(row.get("status") == status for row in rows) for status in ("ok", "failed", "dropped")}
    said = [f"{count['ok']} evaluated"] + [f"{n} {status}" for status, n in count.items() if n and status != "ok"]
    figures = [("evaluations", f"{len(rows)}: {', '.join(said)}")]
    figures.append(("images seen", f"{rows[0][X]:,} to {rows[-1][X]:,}"))
    return figures + (_describe_decision(rows, stopping) if stopping.get("metric") else [])


def _describe_decision(rows: Sequence[Row], stopping: Row) -> list[Entry]:
    metric, best = str(stopping["metric"]), stopping.get("best_images")
    value = next((row[metric] for row in reversed(rows) if row[X] == best and metric in row), None)
    words = f"{best:,} images" if best is not None else "none yet"
    shown = f", {format_number(value)}" if value is not None else ""
    extreme = "smallest" if stopping.get("mode") == "min" else "largest"
    decided = stopping.get("decided_at_images")
    when = f" at {decided:,} images" if decided is not None else ""
    return [
        ("best evaluation", f"{words}{shown} ({extreme} {metric})"),
        ("early stopping", f"{'stop' if stopping.get('stop') else 'continue'}{when}"),
    ]


def tabulate_newest(rows: Sequence[Row]) -> Newest | None:
    """The newest evaluation that has any metric; None where none has."""
    row = next((row for row in reversed(rows) if list_metrics([row])), None)
    if row is None:
        return None
    shown = [n for n in list_metrics([row]) if n.metric in MEANINGS]
    datasets = sorted({n.dataset for n in shown})
    lines = []
    for metric in (m for m in MEANINGS if m in {n.metric for n in shown}):
        found = {n.dataset: format_value(row, n.full) for n in shown if n.metric == metric}
        lines.append(MetricLine(MEANINGS[metric], [found.get(dataset, "") for dataset in datasets]))
    return Newest(int(row[X]), datasets, lines)


def list_meanings(rows: Sequence[Row]) -> list[Meaning]:
    """What the metrics in the rows mean."""
    there = dict.fromkeys(n.metric for n in list_metrics(rows))
    shown = [meaning for metric, meaning in MEANINGS.items() if metric in there]
    return shown + [SPLITS] * any(SPLIT.fullmatch(metric) for metric in there)


def tabulate(rows: Sequence[Row], best: int | None) -> Table:
    """Every evaluation, the newest first; metrics per evaluator and dataset."""
    metrics = [n for n in list_metrics(rows) if not SPLIT.fullmatch(n.metric)]
    groups: dict[tuple[str, str], list[MetricName]] = {}
    for name in metrics:
        groups.setdefault((name.plugin, name.dataset), []).append(name)
    ordered = [name for group in groups.values() for name in group]
    headings = [("", len(OWN_COLUMNS)), *((" / ".join(key), len(group)) for key, group in groups.items())]
    return Table(
        columns=_explain_columns(metrics, best),
        headings=[*headings, ("time", len(TIME_COLUMNS))],
        names=[*OWN_COLUMNS, *(name.metric for name in ordered), *TIME_COLUMNS],
        lines=[_tabulate_row(row, [name.full for name in ordered], best) for row in reversed(rows)],
    )


def _explain_columns(metrics: Sequence[MetricName], best: int | None) -> list[Entry]:
    there = {n.metric for n in metrics}
    said = [
        ("a row", "One snapshot of the encoder, judged once; the newest first."),
        ("images seen", "How many images the training had seen when the snapshot was taken."),
        ("tune index", "The number of the snapshot, from 0."),
        ("status", "ok: judged. failed: an error, see below. dropped: not judged, since newer snapshots waited."),
        *((metric, words) for metric, words in COLUMN_WORDS.items() if metric in there),
        ("lag", "How far the training was ahead when the result came: in images, and in seconds since the snapshot."),
        ("evaluator, s", "Seconds that judging took."),
    ]
    if best is not None:
        said.insert(2, ("★", "The best evaluation by the metric that the run selects by."))
    return said


def _tabulate_row(row: Row, metrics: Sequence[str], best: int | None) -> TableLine:
    status = str(row.get("status", ""))
    images = f"{row[X]:,}" + (" ★" if row[X] == best else "")
    cells = [images, format_number(row.get("tune/tune_index")), status, *(format_value(row, m) for m in metrics)]
    cells += [format_number(row.get(f"tune/{name}")) for name in ("lag_images", "lag_s", "evaluator_s")]
    return TableLine(status, cells)


def list_notes(rows: Sequence[Row]) -> list[Entry]:
    """Each note once, with the evaluations that have it."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for note in row.get("notes") or ():
            found.setdefault(str(note), []).append(int(row[X]))
    out = []
    for note, images in found.items():
        several = f"{len(images)} evaluations, at {images[0]:,} to {images[-1]:,} images"
        out.append((note, several if len(images) > 1 else f"at {images[0]:,} images"))
    return out


def list_errors(rows: Sequence[Row]) -> list[Entry]:
    """What failed, at how many images, and why: whole evaluations and single metrics."""
    return [(f"At {row[X]:,} images: {what}", why) for row in rows for what, why in _list_failures(row)]


def _list_failures(row: Row) -> list[Entry]:
    why = "\n".join(str(row[key]) for key in ("error", "trace") if row.get(key))
    whole = [(str(row.get("status", "")), why)] if why else []
    parts = row.get("failed")
    return whole + [(f"{k} failed", str(v)) for k, v in parts.items()] if isinstance(parts, dict) else whole


def format_value(row: Row, metric: str) -> str:
    """A metric with its interval; empty where it was not computed."""
    if metric not in row:
        return ""
    lowest, highest = limits(metric.rpartition("/")[2])
    low, high = (row.get(f"{metric}_{end}") for end in ("low", "high"))
    low, high = (x if x is None else min(max(x, lowest), highest) for x in (low, high))
    ends = f" [{format_number(low)}, {format_number(high)}]" if low is not None and high is not None else ""
    return format_number(row[metric]) + ends


def format_number(value: Any) -> str:
    """A number as a reader wants it: thousands apart, three decimals; empty for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if abs(value) >= 2 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.3f}".replace("-", "−")
