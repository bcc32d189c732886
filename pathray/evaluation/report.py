"""The report on a run's robustness evaluations: one self-contained page, and its pictures as files.

    python -c "from pathray.evaluation.report import write_report; print(write_report('RUN'))"

Reads ``robustness.jsonl``, ``robustness/embeddings`` and ``early_stopping.json`` of a run, writes
``robustness/report.html`` and the PNGs beside it. Not here: the drawing (pathray.evaluation.report_charts), the
metrics.
"""

from __future__ import annotations

import html
import math
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from pathray.draw.charts import X
from pathray.errors import MissingFile, UserError
from pathray.evaluation.projection import load_embedding, saved
from pathray.evaluation.report_charts import MEANINGS, SPLIT, SPLITS, Named, draw_embedding, limits, named
from pathray.evaluation.report_charts import draw_robustness as draw_robustness
from pathray.evaluation.results import FOLDER, ROWS, read_decision, whole_rows
from pathray.reports.page import STYLE, figure
from pathray.run.tracking import rows_of
from pathray.store.storage import Storage

Row = Mapping[str, Any]

CAPTION = (
    "Every point is a patch; left and right are the same points. Where the encoder sees tissue, the colours of the "
    "classes lie apart on the left and those of the centres are mixed on the right; islands of one centre on the right "
    "are a shortcut. Axes of different evaluations are not the same axes."
)


CURVES = (
    "Over the images seen in training: a panel per metric, a line per dataset, a point per evaluation (not "
    "every metric is due at each). In the panels of accuracy a line is one "
    "evaluation: pale is early, dark is late, black the best."
)
COLUMN_WORDS = {
    "ri": "Robustness index; ri_k: with how many neighbours.",
    "acc_knn": "Accuracy of those neighbours' vote on the class.",
    "clustering_score": "Clustering score: ari_class less ari_center, the agreement with classes and with centres.",
    "apd_avg": "Performance drop: apd_id at the training's own centres, apd_ood at others, apd_avg their mean.",
    "linear_id": "Linear probe; linear_ood: on out-of-domain patches.",
    "knn_id": "Nearest neighbours' probe; knn_ood: on out-of-domain patches.",
}


@dataclass(frozen=True)
class Picture:
    """A PNG of the page: its file, what is below it, and what is seen on it, for those who do not see it."""

    name: str
    png: bytes
    caption: str
    alt: str


def write_report(run_dir: str) -> str:
    """Write the report of the run at `run_dir` (path or URL); the page's path.

    MissingFile where the run has no ``robustness.jsonl``, UserError where it has no whole row yet.
    """
    store = Storage.of(run_dir)
    rows, lost = _rows(store)
    problems = [f"{lost} damaged lines of {ROWS} are left out"] if lost else []
    stopping = _stopping(run_dir, problems)
    best = stopping.get("best_images")
    title = f"Robustness of {store.url.rstrip('/').rpartition('/')[2]}"
    curves = []
    if named(rows):
        png = draw_robustness(rows, title, best_images=best)
        curves.append(Picture("curves.png", png, CURVES, _curves_in_words(rows)))
    embeddings = _embeddings(store.join(FOLDER, "embeddings"), {int(row[X]) for row in rows}, best, problems)
    for picture in (*curves, *embeddings):
        store.write_bytes(f"{FOLDER}/{picture.name}", picture.png)
    sections = [
        _section("Summary", _summary(rows, stopping)),
        _section("Metrics over images seen", "".join(map(_figure, curves)) or "<p>No metric was computed yet.</p>"),
        _section("What the metrics mean", _meanings(rows)),
        _section("Embeddings", "".join(map(_figure, embeddings)), f"<p>{CAPTION}</p>"),
        _section("Evaluations", _table(rows, best)),
        _section("Damaged files", "".join(f"<p>{html.escape(problem)}</p>" for problem in problems)),
        _section("Notes", _notes(rows)),
        _section("Errors", _errors(rows)),
    ]
    page = PAGE.substitute(title=html.escape(title), style=STYLE, body="".join(sections))
    store.write_bytes(f"{FOLDER}/report.html", page.encode())
    return store.join(FOLDER, "report.html")


def _rows(store: Storage) -> tuple[list[dict[str, Any]], int]:
    """The rows of the newest run in the file, by images, and how many lines of the file are damaged."""
    try:
        content = store.read_bytes(ROWS)
    except MissingFile as e:
        expected = "the folder of a run with tuning.enable=true"
        raise MissingFile("no robustness evaluations", file=store.join(ROWS), expected=expected) from e
    rows = whole_rows(rows_of(content))
    if not rows:
        raise UserError("no evaluation has ended yet", file=store.join(ROWS), found="no whole row")
    own = rows[-1].get("identity")  # a folder may hold the rows of an earlier run
    lost = sum(line.endswith(b"\n") and bool(line.strip()) for line in content.splitlines(keepends=True)) - len(rows)
    return sorted((row for row in rows if row.get("identity") == own), key=lambda row: int(row[X])), lost


def _stopping(run_dir: str, problems: list[str]) -> Row:
    try:
        return read_decision(run_dir) or {}
    except UserError as e:
        problems.append(str(e))
        return {}


def _embeddings(folder: str, evaluated: Collection[int], best: int | None, problems: list[str]) -> list[Picture]:
    """Per dataset those of the first, the best and the newest evaluation; `problems` gets those that are damaged."""
    found: dict[str, list[int]] = {}
    for dataset, images in saved(folder):
        if images in evaluated:
            found.setdefault(dataset, []).append(images)
    out = []
    for number, (dataset, there) in enumerate(found.items()):
        for images in sorted({there[0], there[-1], best if best in there else there[0]}):
            words = [w for w, at in (("first", there[0]), ("best", best), ("newest", there[-1])) if at == images]
            title = f"{dataset} at {images:,} images seen ({' and '.join(words)})"
            try:
                png = draw_embedding(load_embedding(folder, dataset, images), title)
            except UserError as e:
                problems.append(str(e))
                continue
            alt = f"Scatter plots of the same patches: {title}; left coloured by class, right by centre."
            out.append(Picture(f"embedding_{number}_{words[0]}.png", png, title, alt))
    return out


def _curves_in_words(rows: Sequence[Row]) -> str:
    """What the curves show: each metric's first and newest value, per dataset."""
    said = []
    for name in named(rows):
        if name.metric in MEANINGS:
            values = [row[name.full] for row in rows if row.get(name.full) is not None]
            said.append(
                f"{MEANINGS[name.metric].title} on {name.dataset} {_number(values[0])} to {_number(values[-1])}"
            )
    return "Line charts over images seen. " + "; ".join(said) + "."


def _summary(rows: Sequence[Row], stopping: Row) -> str:
    count = {status: sum(row.get("status") == status for row in rows) for status in ("ok", "failed", "dropped")}
    said = [f"{count['ok']} evaluated"] + [f"{n} {status}" for status, n in count.items() if n and status != "ok"]
    figures = [("evaluations", f"{len(rows)}: {', '.join(said)}")]
    figures.append(("images seen", f"{rows[0][X]:,} to {rows[-1][X]:,}"))
    if stopping.get("metric"):
        metric, best = str(stopping["metric"]), stopping.get("best_images")
        value = next((row[metric] for row in reversed(rows) if row[X] == best and metric in row), None)
        words = f"{best:,} images" if best is not None else "none yet"
        shown = f", {_number(value)}" if value is not None else ""
        extreme = "smallest" if stopping.get("mode") == "min" else "largest"
        figures.append(("best evaluation", f"{words}{shown} ({extreme} {metric})"))
        decided = stopping.get("decided_at_images")
        when = f" at {decided:,} images" if decided is not None else ""
        figures.append(("early stopping", f"{'stop' if stopping.get('stop') else 'go on'}{when}"))
    entries = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in figures)
    return f"<dl>{entries}</dl>{_newest(rows)}"


def _newest(rows: Sequence[Row]) -> str:
    """The metrics of the newest evaluation that has any: a line per metric, a column per dataset."""
    row = next((row for row in reversed(rows) if named([row])), None)
    if row is None:
        return ""
    shown = [n for n in named([row]) if n.metric in MEANINGS]
    datasets = sorted({n.dataset for n in shown})
    head = "".join(f"<th>{html.escape(dataset)}</th>" for dataset in datasets)
    lines = []
    for metric in (m for m in MEANINGS if m in {n.metric for n in shown}):
        found = {n.dataset: _value(row, n.full) for n in shown if n.metric == metric}
        cells = "".join(f"<td>{html.escape(found.get(dataset, ''))}</td>" for dataset in datasets)
        title, best = html.escape(MEANINGS[metric].title), html.escape(MEANINGS[metric].best)
        lines.append(f"<tr><th class=name>{title} <span class=muted>{best}</span></th>{cells}</tr>")
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<h3>The newest evaluation, at {row[X]:,} images seen</h3><div class=wide>{table}</div>"


def _meanings(rows: Sequence[Row]) -> str:
    there = dict.fromkeys(n.metric for n in named(rows))
    shown = [meaning for metric, meaning in MEANINGS.items() if metric in there]
    if any(SPLIT.fullmatch(metric) for metric in there):
        shown.append(SPLITS)
    items = (
        f"<dt>{html.escape(m.title)}</dt><dd class=plain>{html.escape(m.sentence)} <b>{html.escape(m.best)}.</b></dd>"
        for m in shown
    )
    return f"<dl>{''.join(items)}</dl>" if shown else ""


def _table(rows: Sequence[Row], best: int | None) -> str:
    """Every evaluation, the newest first; metrics per evaluator and dataset."""
    metrics = [n for n in named(rows) if not SPLIT.fullmatch(n.metric)]
    groups: dict[tuple[str, str], list[Named]] = {}
    for name in metrics:
        groups.setdefault((name.plugin, name.dataset), []).append(name)
    own = ("images seen", "tune index", "status")
    after = ("lag, images", "lag, s", "evaluator, s")
    over = f"<th colspan={len(own)}></th>"
    over += "".join(f"<th colspan={len(g)}>{html.escape(' / '.join(key))}</th>" for key, g in groups.items())
    over += f"<th colspan={len(after)}>time</th>"
    names = [*own, *(n.metric for g in groups.values() for n in g), *after]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(_line(row, [n.full for g in groups.values() for n in g], best) for row in reversed(rows))
    return _columns(metrics, best) + (
        f"<div class=wide><table><thead><tr>{over}</tr><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "<p class=muted>In brackets: 95% interval. Empty: not due at this evaluation, or a note says why there is none."
        "</p>"
    )


def _columns(metrics: Sequence[Named], best: int | None) -> str:
    """What a row and its columns mean."""
    there = {n.metric for n in metrics}
    said = [
        ("a row", "One snapshot of the encoder, judged once; the newest first."),
        ("images seen", "How many images the training had seen when the snapshot was taken."),
        ("tune index", "The number of the snapshot, from 0."),
        ("status", "ok: judged. failed: an error, see below. dropped: not judged, since newer snapshots waited."),
        *((f"{metric}", words) for metric, words in COLUMN_WORDS.items() if metric in there),
        ("lag", "How far the training was ahead when the result came: in images, and in seconds since the snapshot."),
        ("evaluator, s", "Seconds that judging took."),
    ]
    if best is not None:
        said.insert(2, ("★", "The best evaluation by the metric that the run selects by."))
    items = "".join(f"<dt>{html.escape(a)}</dt><dd class=plain>{html.escape(b)}</dd>" for a, b in said)
    return f"<dl>{items}</dl><br>"


def _line(row: Row, metrics: Sequence[str], best: int | None) -> str:
    status = str(row.get("status", ""))
    images = f"{row[X]:,}" + (" ★" if row[X] == best else "")
    cells = [images, _number(row.get("tune/tune_index")), status, *(_value(row, metric) for metric in metrics)]
    cells += [_number(row.get(f"tune/{name}")) for name in ("lag_images", "lag_s", "evaluator_s")]
    kind = f' class="{status}"' if status in ("failed", "dropped") else ""
    return f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _notes(rows: Sequence[Row]) -> str:
    """Each note once, with the evaluations that it is of."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for note in row.get("notes") or ():
            found.setdefault(str(note), []).append(int(row[X]))
    items = []
    for note, images in found.items():
        several = f"{len(images)} evaluations, at {images[0]:,} to {images[-1]:,} images"
        where = several if len(images) > 1 else f"at {images[0]:,} images"
        items.append(f"<li>{html.escape(note)} <span class=muted>({where})</span></li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _errors(rows: Sequence[Row]) -> str:
    return "".join(
        f"<h3>At {row[X]:,} images: {html.escape(what)}</h3><pre>{html.escape(why)}</pre>"
        for row in rows
        for what, why in _failures(row)
    )


def _failures(row: Row) -> list[tuple[str, str]]:
    """What failed, and why: the whole evaluation, or single metrics of it."""
    why = "\n".join(str(row[key]) for key in ("error", "trace") if row.get(key))
    whole = [(str(row.get("status", "")), why)] if why else []
    parts = row.get("failed")
    return whole + [(f"{k} failed", str(v)) for k, v in parts.items()] if isinstance(parts, dict) else whole


def _value(row: Row, metric: str) -> str:
    """A metric with its interval; empty where it was not computed."""
    if metric not in row:
        return ""
    lowest, highest = limits(metric.rpartition("/")[2])
    low, high = (row.get(f"{metric}_{end}") for end in ("low", "high"))
    low, high = (x if x is None else min(max(x, lowest), highest) for x in (low, high))
    ends = f" [{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""
    return _number(row[metric]) + ends


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if abs(value) >= 2 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.3f}".replace("-", "−")


def _section(title: str, content: str, lead: str = "") -> str:
    return f"<section><h2>{html.escape(title)}</h2>{lead}{content}</section>" if content else ""


def _figure(picture: Picture) -> str:
    source = "data:image/png;base64," + b64encode(picture.png).decode()
    return figure(source, picture.alt, picture.caption, chart=True)


PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style
tr.failed td { background: #fdecec } tr.dropped td { color: var(--muted); background: var(--card) }
</style>
<h1>$title</h1>
<p class="lead">Snapshots of the encoder were judged while the training went on: does it see the tissue, or the centre
that a slide comes from? A click enlarges a picture.</p>
$body
</html>
""")
