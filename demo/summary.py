"""What a demo run has made: figures, a self-contained HTML page, the lines on the terminal. Reads files only."""

from __future__ import annotations

import csv
import html
import json
import os
import shlex
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

WIDE = 1600  # pixels of a picture on the page


@dataclass
class Facts:
    """Figures of a run; None where the run has not logged them."""

    output: Path
    slides: int
    sites: list[str]
    organs: list[str]
    anchors: int
    images: int
    loss: tuple[float, float] | None
    rankme: tuple[float, float] | None
    deviation: tuple[float, float] | None
    images_per_s: float | None
    train_s: float
    total_s: float
    robustness: tuple[float, float] | None = None
    evaluations: int = 0
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def mlflow(self) -> str | None:
        store = self.output / "run" / "mlflow.db"
        if not store.is_file():
            return None
        python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
        return f"{python} -m mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{store.resolve()}')} --port 5000"


def gather(output: Path, manifest: Path, train_s: float, total_s: float) -> Facts:
    """Read the figures of a finished demo below `output`."""
    with manifest.open(newline="", encoding="utf-8-sig") as f:
        slides = list(csv.DictReader(f))
    catalog = json.loads((output / "run" / "indexes" / "anchor_catalog_manifest.json").read_text())
    lines = (output / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    judged = _judged(output / "run")
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s") is not None)
    return Facts(
        output=output,
        slides=len(slides),
        sites=sorted({row["site"] for row in slides if row.get("site")}),
        organs=sorted({row["organ"] for row in slides if row.get("organ")}),
        anchors=int(catalog["total_anchors"]),
        images=max((int(row["images_seen"]) for row in rows), default=0),
        loss=first_and_last(rows, "loss"),
        rankme=first_and_last(rows, "target_rankme"),
        deviation=first_and_last(rows, "target_std"),
        images_per_s=speeds[len(speeds) // 2] if speeds else None,
        train_s=train_s,
        total_s=total_s,
        robustness=first_and_last(judged, "pathorob/hospitals/ri"),
        evaluations=len(judged),
        files=_files(output),
    )


def _judged(run: Path) -> list[dict[str, float]]:
    """The rows of evaluations that succeeded, by images."""
    path = run / "robustness.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["status"] == "ok"]
    return sorted(rows, key=lambda row: row["images_seen"])


def first_and_last(rows: list[dict[str, float]], metric: str) -> tuple[float, float] | None:
    """The metric in the first and the last row that has it."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return (values[0], values[-1]) if values else None


def _files(output: Path) -> dict[str, Path]:
    run, pictures = output / "run", output / "pictures"
    named = {
        "encoder": run / "encoder",
        "checkpoints": run / "checkpoints",
        "metrics": run / "metrics.jsonl",
        "resolved config": run / "config_resolved.yaml",
        "slide index": run / "indexes" / "slide_metadata.parquet",
        "anchor catalog": run / "indexes" / "anchor_catalog_manifest.json",
        "previews": pictures,
        "overlays": pictures / "overlays",
        "robustness": run / "robustness" / "report.html",
        "training curves": pictures / "curves.png",
        "cohort": output / "cohort",
    }
    return {name: path for name, path in named.items() if path.exists()}


def text(facts: Facts, page: Path) -> str:
    """The closing lines on the terminal."""
    lines = [f"{name:<18}{value}" for name, value in figures(facts)]
    lines += ["", *(f"{name:<18}{path}" for name, path in facts.files.items())]
    lines += ["", f"{'open':<18}{page}"]
    if facts.mlflow:
        lines.append(f"{'MLflow':<18}{facts.mlflow}")
    return "\n".join(f"   {line}".rstrip() for line in lines)


def figures(facts: Facts) -> list[tuple[str, str]]:
    """The figures in words."""
    where = f" of {len(facts.sites)} hospitals ({', '.join(facts.sites)})" if facts.sites else ""
    out = [("slides", f"{facts.slides}{where}"), ("anchors", f"{facts.anchors:,}")]
    out.append(("images trained on", f"{facts.images:,}"))
    if facts.loss:
        change = 100 * (facts.loss[1] / facts.loss[0] - 1) if facts.loss[0] else 0.0
        out.append(("loss", f"{facts.loss[0]:.4f} → {facts.loss[1]:.4f} ({change:+.0f}%)"))
    if facts.rankme:
        out.append(("RankMe", f"{facts.rankme[0]:.1f} → {facts.rankme[1]:.1f} effective dimensions"))
    if facts.deviation:
        out.append(("feature deviation", f"{facts.deviation[0]:.3f} → {facts.deviation[1]:.3f} (0 would be collapse)"))
    if facts.robustness:
        change = f"{facts.robustness[0]:.3f} → {facts.robustness[1]:.3f}"
        out.append(("robustness index", f"{change} over {facts.evaluations} evaluations (1: hospitals do not matter)"))
    if facts.images_per_s:
        out.append(("speed", f"{facts.images_per_s:.1f} images/s"))
    out.append(("time", f"{facts.total_s:.0f} s, of which index, anchors and training {facts.train_s:.0f} s"))
    return out


def write_page(output: Path, facts: Facts) -> Path:
    """`index.html`: all pictures inside it, so that it can be sent as one file."""
    pictures = output / "pictures"
    sections = [
        _section("Learning", [(pictures / "curves.png", "Training curves over images seen.")]),
        _section("Robustness between the two hospitals", _robustness(output / "run" / "robustness")),
        _section("What training sees", _previews(pictures)),
        _section("Close up", [(p, "Steps 2 to 5.") for p in sorted(pictures.glob("zoom4_*.png"))[:1]]),
        _section("Tissue and anchors", [(p, p.stem) for p in sorted((pictures / "overlays").glob("*.png"))], grid=True),
    ]
    rows = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in figures(facts))
    files = "".join(
        f"<dt>{html.escape(a)}</dt><dd><code>{html.escape(str(b))}</code></dd>" for a, b in facts.files.items()
    )
    if facts.mlflow:
        files += f"<dt>MLflow</dt><dd><code>{html.escape(facts.mlflow)}</code></dd>"
    body = f"<section><h2>In figures</h2><dl>{rows}</dl></section>{''.join(sections)}"
    body += f"<section><h2>Files</h2><dl>{files}</dl></section>"
    page = output / "index.html"
    page.write_text(PAGE.replace("BODY", body), encoding="utf-8")
    return page


def _previews(pictures: Path) -> list[tuple[Path, str]]:
    reveals, flows = (sorted(pictures.glob(p)) for p in ("ijepa_*.gif", "preview_*.png"))
    return [(p, "One sample, step by step.") for p in reveals[:1]] + [(p, "") for p in flows[1:3]]


def _robustness(folder: Path) -> list[tuple[Path, str]]:
    captions = {"first": "Before training: the same patches by class and by hospital.", "newest": "After it."}
    embeddings = [(folder / f"embedding_0_{name}.png", text) for name, text in captions.items()]
    return [(folder / "curves.png", "Metrics of the snapshots, evaluated while the training went on."), *embeddings]


def _section(title: str, pictures: list[tuple[Path, str]], *, grid: bool = False) -> str:
    shown = [(path, caption) for path, caption in pictures if path.is_file()]
    if not shown:
        return ""
    items = "".join(
        f'<figure><img alt="{html.escape(caption or path.stem)}" src="{_embedded(path, WIDE // 2 if grid else WIDE)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for path, caption in shown
    )
    kind = ' class="grid"' if grid else ""
    return f"<section><h2>{html.escape(title)}</h2><div{kind}>{items}</div></section>"


def _embedded(path: Path, width: int) -> str:
    """A data URI: GIFs as they are, everything else as JPEG of at most `width`."""
    from PIL import Image

    if path.suffix == ".gif":
        return "data:image/gif;base64," + b64encode(path.read_bytes()).decode()
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    out = BytesIO()
    picture.save(out, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + b64encode(out.getvalue()).decode()


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pathray: I-JEPATH demo</title>
<style>
:root { color-scheme: light; --ink: #1b2333; --muted: #5f6b7e; --card: #f4f6f9; --line: #dfe4ea }
body { margin: 0 auto; max-width: 1180px; padding: 48px 28px 80px; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 34px; line-height: 1.2; margin: 0 } h2 { font-size: 20px; margin: 0 0 16px }
.lead { color: var(--muted); max-width: 46em; margin: 12px 0 0 }
section { border-top: 1px solid var(--line); padding-top: 28px; margin-top: 40px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 28px; margin: 0 }
dt { color: var(--muted) } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; font-weight: 400 }
figure { margin: 0 0 24px } img { width: 100%; display: block; border: 1px solid var(--line); border-radius: 8px }
figcaption { color: var(--muted); font-size: 14px; margin-top: 8px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 20px }
</style>
<h1>I-JEPATH on a small cohort</h1>
<p class="lead">A student sees tissue at low resolution with holes in it, and learns to predict the features that a
slowly moving teacher computes from the same places in high resolution. No labels, no pixels reconstructed. This page
holds one short run from slides to encoder; it shows that everything works, not what a long training can learn.</p>
BODY
</html>
"""
