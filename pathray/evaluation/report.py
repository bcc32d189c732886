"""The report on a run's robustness evaluations: one self-contained page, and its pictures as files.

    python -c "from pathray.evaluation.report import write_report; print(write_report('RUN'))"

Reads ``robustness.jsonl``, ``robustness/embeddings`` and ``early_stopping.json`` of a run, writes
``robustness/report.html`` and the PNGs next to it. Not here: the page's tables (pathray.evaluation.report_tables), its
curves (pathray.evaluation.report_charts), its HTML (pathray/reports/templates), the metrics.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathray.draw.charts import X
from pathray.errors import MissingFile, UserError
from pathray.evaluation.embedding_chart import draw_embedding
from pathray.evaluation.metric_names import MEANINGS, list_metrics
from pathray.evaluation.projection import list_embeddings, load_embedding
from pathray.evaluation.report_charts import draw_robustness
from pathray.evaluation.report_tables import (
    format_number,
    list_errors,
    list_meanings,
    list_notes,
    summarize,
    tabulate,
    tabulate_newest,
)
from pathray.evaluation.results import FOLDER, ROWS, read_decision, whole_rows
from pathray.reports.page import PagePicture, render_page
from pathray.run.layout import EVALUATION_REPORT
from pathray.store.metrics_log import rows_of
from pathray.store.storage import Storage

Row = Mapping[str, Any]

CURVES = (
    "Over the images seen in training: a panel per metric, a line per dataset, a point per evaluation (not "
    "every metric is due at each). In the panels of accuracy a line is one "
    "evaluation: pale is early, dark is late, black the best."
)


@dataclass(frozen=True)
class Picture:
    """A PNG of the page: its file, what is below it, and what is seen on it, for those who do not see it."""

    name: str
    png: bytes
    caption: str
    alt: str

    def embed(self) -> PagePicture:
        """The picture as a part of the page itself."""
        return PagePicture("data:image/png;base64," + b64encode(self.png).decode(), self.alt, self.caption)


def write_report(run_dir: str) -> str:
    """Write the report of the run at `run_dir` (path or URL); the page's path.

    MissingFile where the run has no ``robustness.jsonl``, UserError where it has no whole row yet.
    """
    store = Storage.of(run_dir)
    rows, lost = _read_rows(store)
    problems = [f"{lost} damaged lines of {ROWS} are left out"] if lost else []
    stopping = _read_stopping(run_dir, problems)
    best = stopping.get("best_images")
    title = f"Robustness of {store.url.rstrip('/').rpartition('/')[2]}"
    curves = []
    if list_metrics(rows):
        png = draw_robustness(rows, title, best_images=best)
        curves.append(Picture("curves.png", png, CURVES, _describe_curves(rows)))
    embeddings = _draw_embeddings(store.join(FOLDER, "embeddings"), {int(row[X]) for row in rows}, best, problems)
    for picture in (*curves, *embeddings):
        store.write_bytes(f"{FOLDER}/{picture.name}", picture.png)
    values = {
        "title": title,
        "summary": summarize(rows, stopping),
        "newest": tabulate_newest(rows),
        "curves": [picture.embed() for picture in curves],
        "meanings": list_meanings(rows),
        "embeddings": [picture.embed() for picture in embeddings],
        "table": tabulate(rows, best),
        "problems": problems,
        "notes": list_notes(rows),
        "errors": list_errors(rows),
    }
    store.write_bytes(EVALUATION_REPORT, render_page("robustness.html.j2", values).encode())
    return store.join(EVALUATION_REPORT)


def _read_rows(store: Storage) -> tuple[list[dict[str, Any]], int]:
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


def _read_stopping(run_dir: str, problems: list[str]) -> Row:
    """What early stopping decided; `problems` gets what is wrong with its file."""
    try:
        return read_decision(run_dir) or {}
    except UserError as e:
        problems.append(str(e))
        return {}


def _draw_embeddings(folder: str, evaluated: Collection[int], best: int | None, problems: list[str]) -> list[Picture]:
    """Per dataset those of the first, the best and the newest evaluation; `problems` gets those that are damaged."""
    found: dict[str, list[int]] = {}
    for dataset, images in list_embeddings(folder):
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


def _describe_curves(rows: Sequence[Row]) -> str:
    """What the curves show, in words: each metric's first and newest value, per dataset."""
    said = []
    for name in list_metrics(rows):
        if name.metric in MEANINGS:
            values = [row[name.full] for row in rows if row.get(name.full) is not None]
            first, last = format_number(values[0]), format_number(values[-1])
            said.append(f"{MEANINGS[name.metric].title} on {name.dataset} {first} to {last}")
    return "Line charts over images seen. " + "; ".join(said) + "."
