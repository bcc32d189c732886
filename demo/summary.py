"""What a demo run has made: figures, a self-contained HTML page, the lines on the terminal. Reads files only."""

from __future__ import annotations

import csv
import json
import logging
import os
import shlex
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from pathray.evaluation.results import whole_rows
from pathray.files.images import open_image
from pathray.reports.page import PagePicture, render_page
from pathray.run import layout
from pathray.store.metrics_log import rows_of

log = logging.getLogger(__name__)
TIMES = "times.json"
PROBE = "probe/hospitals/linear_id"
MARGIN = 0.05  # a probe has to gain so much on some 70 patches before the page speaks of learning
PAINTED = (
    "These slides are painted: random features tell their textures apart, and the two hospitals differ more than "
    "painted tissues do. What the same settings learn on real tissue is in ijepath/README.md."
)
WIDE = 1600  # pixels of a picture on the page
CLOSE = "One sample close up: what the student sees, the places that it predicts, and what the teacher sees there."
DOTS = (
    "One picture per slide. A dot is the centre of an anchor: a place that training reads a context at. Its colour is "
    "the share of tissue in the context, from yellow (little) to dark blue (all); the dashed frame is the size of one."
)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Shown:
    """A picture's file and what is seen on it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page. grid: small pictures next to each other, not one below the other."""

    title: str
    pictures: list[PagePicture]
    grid: bool = False
    lead: str = ""

    @property
    def id(self) -> str:
        return self.title.lower().replace(" ", "-")


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
    explained: tuple[float, float] | None
    images_per_s: float | None
    train_s: float
    total_s: float
    robustness: tuple[float, float] | None = None
    probe: tuple[float, float] | None = None  # random weights, trained
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
    catalog = json.loads((output / "run" / layout.ANCHOR_CATALOG).read_text())
    rows = [row for row in rows_of((output / "run" / layout.METRICS).read_bytes()) if "images_seen" in row]
    judged = _evaluation_rows(output / "run")
    images = max((int(row["images_seen"]) for row in rows), default=0)
    train_s, total_s = _times(output / TIMES, images, train_s, total_s)
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s") is not None)
    return Facts(
        output=output,
        slides=len(slides),
        sites=sorted({row["site"] for row in slides if row.get("site")}),
        organs=sorted({row["organ"] for row in slides if row.get("organ")}),
        anchors=int(catalog["total_anchors"]),
        images=images,
        loss=first_and_last(rows, "loss"),
        rankme=first_and_last(rows, "target_rankme"),
        deviation=first_and_last(rows, "target_std"),
        explained=first_and_last(rows, "explained"),
        images_per_s=speeds[len(speeds) // 2] if speeds else None,
        train_s=train_s,
        total_s=total_s,
        robustness=first_and_last(judged, "pathorob/hospitals/ri"),
        probe=_probe(judged),
        evaluations=len(judged),
        files=_files(output),
    )


def _times(path: Path, images: int, train_s: float, total_s: float) -> tuple[float, float]:
    """Seconds of training and of all, those of the start that trained: a rerun that finds all done keeps them."""
    if path.is_file():
        try:
            known = json.loads(path.read_bytes())
            if known["images"] == images:
                return float(known["train_s"]), float(known["total_s"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged, and is written again", path, exc_info=True)
    path.write_text(json.dumps({"images": images, "train_s": train_s, "total_s": total_s}))
    return train_s, total_s


def _evaluation_rows(run: Path) -> list[dict[str, float]]:
    """The rows of evaluations that succeeded, by images."""
    path = run / layout.EVALUATIONS
    rows = [row for row in whole_rows(rows_of(path.read_bytes())) if row["status"] == "ok"] if path.is_file() else []
    return sorted(rows, key=lambda row: row["images_seen"])


def _probe(judged: list[dict[str, float]]) -> tuple[float, float] | None:
    """The linear probe of the random weights and of the last snapshot; None unless both were judged."""
    found = [row for row in judged if row.get(PROBE) is not None]
    if len(found) < 2 or found[0]["images_seen"] != 0:
        return None
    return found[0][PROBE], found[-1][PROBE]


def first_and_last(rows: list[dict[str, float]], metric: str) -> tuple[float, float] | None:
    """The metric in the first and the last row that has it."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return (values[0], values[-1]) if values else None


def _files(output: Path) -> dict[str, Path]:
    run, pictures = output / "run", output / "pictures"
    named = {
        "encoder": run / layout.ENCODER,
        "checkpoints": run / layout.CHECKPOINTS,
        "metrics": run / layout.METRICS,
        "resolved config": run / layout.CONFIG,
        "slide index": run / layout.SLIDE_INDEX,
        "anchor catalog": run / layout.ANCHOR_CATALOG,
        "previews": pictures,
        "overlays": pictures / "overlays",
        "robustness": run / layout.EVALUATION_REPORT,
        "training curves": pictures / "curves.png",
        "cohort": output / "cohort",
    }
    return {name: path for name, path in named.items() if path.exists()}


def text(facts: Facts, page: Path) -> str:
    """The closing lines on the terminal."""
    lines = [f"{name:<18}{value}" for name, value in figures(facts)]
    lines += ["", verdict(facts)]
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
    if facts.explained:
        change = " → ".join(map(_percent, facts.explained))
        out.append(("explained", f"{change} of the variance between targets (none: no more than their mean)"))
    if facts.probe:
        words = f"{facts.probe[0]:.3f} with random weights → {facts.probe[1]:.3f} trained"
        out.append(("tissue probe", f"{words} (balanced accuracy on patches of other slides)"))
    if facts.robustness:
        change = f"{facts.robustness[0]:.3f} → {facts.robustness[1]:.3f}"
        out.append(("robustness index", f"{change} over {facts.evaluations} evaluations (1: hospitals do not matter)"))
    if facts.images_per_s:
        out.append(("speed", f"{facts.images_per_s:.1f} images/s"))
    out.append(("time", f"{facts.total_s:.0f} s, of which index, anchors and training {facts.train_s:.0f} s"))
    return out


def verdict(facts: Facts) -> str:
    """What this run shows, and what it does not, from its own figures."""
    parts = ["This run shows that the pipeline works from slides to encoder."]
    if facts.explained:
        learned = facts.explained[1] > 0
        parts.append(
            f"The predictor explains {_percent(facts.explained[1])} of the variance between targets, at the start "
            f"{_percent(facts.explained[0])}."
            if learned
            else "The predictor knows no more than the mean of its targets, so it has not learned its task."
        )
    if facts.probe:
        random, trained = facts.probe
        end = "The features have improved" if trained - random >= MARGIN else "The features have not learned tissue"
        parts.append(f"{end}: a linear probe for tissue has {trained:.2f}, with random weights {random:.2f}.")
        if trained - random < MARGIN:
            parts.append(PAINTED)
    return " ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share > 0 else "none"


def _curves(facts: Facts) -> str:
    fell = f" The loss goes from {facts.loss[0]:.4f} to {facts.loss[1]:.4f}." if facts.loss else ""
    more = " A falling loss alone is no learning: a prediction of the mean has a low loss, too."
    return f"Training curves over {facts.images:,} images seen: loss, what predictions explain, collapse.{fell}{more}"


def write_page(output: Path, facts: Facts) -> Path:
    """`index.html`: all pictures inside it, so that it can be sent as one file."""
    pictures, page = output / "pictures", output / "index.html"
    sections = [
        _section("Learning", [Shown(pictures / "curves.png", _curves(facts))]),
        _section("Robustness between the two hospitals", _robustness(output / "run" / layout.EVALUATION)),
        _section("What training sees", _previews(pictures)),
        _section("Close up", [Shown(p, CLOSE) for p in sorted(pictures.glob("zoom4_*.png"))[:1]]),
        _section("Tissue and anchors", _overlays(pictures / "overlays"), grid=True, lead=DOTS),
    ]
    shown = [section for section in sections if section.pictures]
    titles = [(section.id, section.id.replace("-", " ").capitalize()) for section in shown]
    values = {
        "links": [("figures", "In figures"), *titles, ("files", "Files")],
        "verdict": verdict(facts),
        "figures": figures(facts),
        "sections": shown,
        "files": [(name, _link(page, path), str(path)) for name, path in facts.files.items()],
        "mlflow": facts.mlflow,
    }
    page.write_text(render_page("demo.html.j2", values, TEMPLATES), encoding="utf-8")
    return page


def _previews(pictures: Path) -> list[Shown]:
    reveals, flows = (sorted(pictures.glob(p)) for p in ("ijepa_*.gif", "preview_*.png"))
    film = (
        "One training sample, step by step: the slide, what the student sees, what it predicts, what the teacher sees."
    )
    whole = "Another sample as one picture, the same steps from left to right."
    return [Shown(p, film) for p in reveals[:1]] + [Shown(p, f"{whole} ({_name(p)})") for p in flows[1:3]]


def _overlays(folder: Path) -> list[Shown]:
    """A picture per slide, under its name."""
    return [
        Shown(
            p, f"Slide {p.stem}: the orange line is the tissue's outline, every dot the centre of an anchor's context."
        )
        for p in sorted(folder.glob("*.png"))
    ]


def _robustness(folder: Path) -> list[Shown]:
    words = "Left: coloured by tissue class, right: by hospital. Colours that mix on the right are good."
    captions = {"first": "The same patches before training.", "newest": "The same patches after training."}
    embeddings = [Shown(folder / f"embedding_0_{name}.png", f"{text} {words}") for name, text in captions.items()]
    curves = "Metrics of the encoder's snapshots over images seen, evaluated during training."
    return [Shown(folder / "curves.png", curves), *embeddings]


def _name(path: Path) -> str:
    return path.stem.removeprefix("preview_").removeprefix("zoom4_")


def _section(title: str, pictures: list[Shown], *, grid: bool = False, lead: str = "") -> Section:
    """The pictures that are there, as a part of the page; a section of none is not shown."""
    items = [
        PagePicture(_embed(p.path, WIDE), f"{title}. {p.caption}", p.caption) for p in pictures if p.path.is_file()
    ]
    return Section(title, items, grid, lead)


def _link(page: Path, path: Path) -> str:
    """A file's path as a link that holds while page and file stay in one folder."""
    return quote(Path(os.path.relpath(path, page.parent)).as_posix()) + ("/" if path.is_dir() else "")


def _embed(path: Path, width: int) -> str:
    """A data URI: GIFs as they are, everything else as JPEG of at most `width`."""
    from PIL import Image

    if path.suffix == ".gif":
        return "data:image/gif;base64," + b64encode(path.read_bytes()).decode()
    with open_image(path.read_bytes()) as image:
        picture = image.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    out = BytesIO()
    picture.save(out, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + b64encode(out.getvalue()).decode()
