"""Writes an analysis: the maps of the chosen slides, slides.csv, embeddings, and a page that a clinician can read.

Not here: one slide (.slide_analysis), coordinates of embeddings (.embeddings).
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mil.analysis.embeddings import FEATURES, Space, embeddings_table
from mil.analysis.heatmap import words_of
from mil.analysis.scatter import MOST_PANELS, draw_scatter
from mil.analysis.slide_analysis import COLUMNS, Row
from mil.analysis.trained_run import TrainedRun
from mil.judging.page import Table
from pathray.reports.page import PagePicture, render_page
from pathray.reports.summary import Picture, Summary, write_summary
from pathray.reports.units import write_report
from pathray.store.sealed_parquet import to_bytes
from pathray.store.storage import Storage
from pathray.urls import public_text

TEMPLATES = Path(__file__).parent / "templates"
REPORT, SLIDES, EMBEDDINGS, MOST_SHOWN = "report.html", "slides.csv", "embeddings.parquet", 24
READING = (
    "Colours rank the tiles of one slide by the attention of the model that tested it: red is the most, blue the least "
    "attended. Every slide has red tiles, also one without any tumour: colours cannot be compared between slides.",
    "The numbers below each colour bar are the raw weights. Where they are nearly equal from end to end, the model "
    "looked at all tiles alike, and the colours mean nothing.",
    "Attention says which tiles the model weighed, not that they are diseased: a tile may be weighed because it speaks "
    "against a class.",
    "A pixel that several tiles cover shows their mean percentile.",
    "The model of each slide has not seen the slide's patient in training.",
)
SPLIT_CAPTION = (
    "Out-of-fold embeddings: each panel has the test slides of one split, in the space of that split's own model. Axes "
    "of different panels are different axes, so points are not compared across panels."
)
FEATURE_CAPTION = (
    "The mean of each slide's tile features, before any training on labels: one space for all slides. Groups by "
    "hospital or scanner here are there in the encoder's features already."
)


def write_analysis(
    out: Storage, run: TrainedRun, rows: Sequence[Row], spaces: Sequence[Space],
    columns: Mapping[str, Mapping[str, str]], *, title: str,
) -> dict[str, object]:  # fmt: skip
    """Write everything but the maps, which are there; the page comes last. Returns the files."""
    values = sorted({name for row in rows for name in row.slide.values})
    report = (*COLUMNS[:8], *values, *COLUMNS[8:])
    write_report(out.join(SLIDES), report, [row.cells() for row in rows])
    files: dict[str, object] = {"report": out.join(REPORT), "slides": out.join(SLIDES)}
    scatters = draw_scatters(run, spaces, columns)
    if spaces:
        out.write_bytes(EMBEDDINGS, to_bytes(embeddings_table(run, spaces, columns)))
        files["embeddings"] = out.join(EMBEDDINGS)
    for name, (data, _) in scatters.items():
        out.write_bytes(f"{name}.png", data)
    out.write_bytes(REPORT, analysis_page(out, run, rows, scatters, title).encode())
    write_summary(out.url, _summary(out, run, rows, files))
    return files


def _summary(out: Storage, run: TrainedRun, rows: Sequence[Row], files: Mapping[str, object]) -> Summary:
    return Summary(
        "MIL analysis", {"training": run.root.url, "slides": len(rows), "maps": sum(bool(row.heatmap) for row in rows)},
        failed=[(row.slide.slide_id, row.error) for row in rows if row.error],
        notes=[(row.slide.slide_id, note) for row in rows for note in row.notes],
        files={name: str(path) for name, path in files.items()},
        pictures=[Picture(out.join(row.heatmap), row.slide.slide_id) for row in rows if row.heatmap],
    )  # fmt: skip


def draw_scatters(
    run: TrainedRun, spaces: Sequence[Space], columns: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[bytes, str]]:
    """Pictures with their captions by file name: splits by label and by each column, then the shared space."""
    label = {name: slide.truth for name, slide in run.slides.items()}
    fold = {name: slide.fold for name, slide in run.slides.items()}
    own = [space for space in spaces if space.name != FEATURES]
    out: dict[str, tuple[bytes, str]] = {}
    more = f" The first {MOST_PANELS} of {len(own)} splits." if len(own) > MOST_PANELS else ""
    for name, values in ({"label": label} | dict(columns)).items() if own else ():
        panels = [(f"{space.name}: {len(space.names)} test slides", space, values) for space in own]
        out[f"embeddings_{name}"] = draw_scatter(panels, f"Embeddings of slides by {name}"), SPLIT_CAPTION + more
    for space in spaces:
        if space.name == FEATURES:
            every = {"label": label, "fold that tests": fold} | dict(columns)
            panels = [(f"by {name}", space, values) for name, values in every.items()]
            out["mean_features"] = draw_scatter(panels, "Mean features of slides"), FEATURE_CAPTION
    return out


def analysis_page(
    out: Storage, run: TrainedRun, rows: Sequence[Row], scatters: Mapping[str, tuple[bytes, str]], title: str
) -> str:
    drawn = [row for row in rows if row.heatmap]
    blank = sum(any("blank canvas" in note for note in row.notes) for row in drawn)
    facts = [
        ("training", public_text(run.root.url)), ("tested slides", f"{len(run.slides):,} in {len(run.splits)} splits"),
        ("shown here", f"{len(drawn)}, of which {blank} without the slide's image" if blank else str(len(drawn))),
        ("failed", str(sum(bool(row.error) for row in rows))),
        ("largest difference to the table of predictions", f"{max((row.difference for row in drawn), default=0):.1e}"),
    ]  # fmt: skip
    values = {
        "title": public_text(title), "lead": "What the models looked at, slide by slide.", "facts": facts,
        "reading": READING, "slides": [_slide(out, row) for row in rows[:MOST_SHOWN]],
        "more": max(0, len(rows) - MOST_SHOWN),
        "scatters": [PagePicture(_uri(data, "png"), name, caption) for name, (data, caption) in scatters.items()],
        "table": _table(rows),
    }  # fmt: skip
    return render_page("analysis.html.j2", values, TEMPLATES)


def _slide(out: Storage, row: Row) -> dict[str, Any]:
    picture = None
    if row.heatmap:
        data = _small(out.read_bytes(row.heatmap))
        picture = PagePicture(_uri(data, "jpeg"), f"attention over {row.slide.slide_id}", "")
    words = f"{row.chosen}. {words_of(row.slide)}".replace("    ", " · ")
    notes = [*row.notes, *([f"No map: {row.error}"] if row.error else [])]
    return {
        "title": row.slide.slide_id, "words": words, "picture": picture, "notes": [n[0].upper() + n[1:] for n in notes],
        "geojson": row.geojson, "link": quote(row.geojson),
    }  # fmt: skip


def _table(rows: Sequence[Row]) -> Table:
    head = ("slide", "chosen", "true", "predicted", "split", "tiles", "status")
    body = [
        (
            row.slide.slide_id, row.chosen, row.slide.truth, row.slide.predicted, row.slide.split, f"{row.tiles:,}",
            row.error[:160] or "ok",
        )
        for row in rows
    ]  # fmt: skip
    return Table("", "", head, body)


def _small(png: bytes) -> bytes:
    """As a JPEG: a page has many pictures."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(out, "jpeg", quality=88)
    return out.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + b64encode(data).decode()
