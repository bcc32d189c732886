"""A finished training → what its models looked at: attention maps, GeoJSON for QuPath, embeddings, a page. No Ray.

    python -m ray_jobs.analyze_mil run=outputs/mil slides=wsi output=outputs/mil_analysis
    python -m ray_jobs.analyze_mil run=outputs/mil slides=slides.csv ids=[s1,s2] worst=0 best=0 output=outputs/two
    python -m ray_jobs.analyze_mil run=outputs/mil output=outputs/all all=true color_by=[hospital] projection=umap

Every slide is shown with the model of the split that tested it. Without a slide's file its tiles are drawn on a blank
canvas. `slides` is a folder of slides, or a table with slide_id, wsi_path and maybe mpp. heatmaps/SLIDE.png and
geojson/SLIDE.geojson are of the chosen slides; slides.csv has a row for each, with what is missing; report.html has it
all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_at_least, check_one_of, check_positive
from pathray.config.load import MISSING, Loaded, placement
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import check_output, with_absolute_paths

if TYPE_CHECKING:
    from mil.analysis.trained_run import TrainedRun

log = logging.getLogger(__name__)


@dataclass
class AnalyzeMILConfig:
    run: str = MISSING  # the output of train_mil
    output: str = MISSING  # a folder or URL
    slides: str | None = None  # whole slides: a folder, or a table; null: data.slides of the training, where it is
    store: str | None = None  # null: that of the training
    table: str | None = None  # has the columns of color_by; null: data.csv of the training
    ids: list[str] = field(default_factory=list)  # slides to show
    worst: int = 4  # those whose true class got the least probability
    best: int = 4
    all: bool = False  # every tested slide
    top_tiles: int = 8  # of a slide, shown one by one
    max_px: int = 1200  # longer side of a slide's picture
    mpp: float | None = None  # µm per level-0 pixel of slides that do not say it
    geojson: bool = True
    object_type: str = "tile"  # | annotation | detection: what QuPath makes of a tile
    projection: str = "pca"  # | umap | none
    color_by: list[str] = field(default_factory=list)  # columns of the table, such as the hospital
    title: str | None = placement(None)

    def __post_init__(self) -> None:
        check_one_of(
            self, "", projection=("pca", "umap", "none"), object_type=("tile", "annotation", "detection")
        )  # fmt: skip
        check_at_least(self, "", 0, "worst", "best", "top_tiles")
        check_at_least(self, "", 100, "max_px")
        check_positive(self, "", "mpp")


def main(loaded: Loaded[AnalyzeMILConfig]) -> Outputs | None:
    from mil.analysis.choosing import choose_slides
    from mil.analysis.embeddings import columns_of, spaces_of
    from mil.analysis.output import write_analysis
    from mil.analysis.slide_analysis import SlideAnalyst, Wanted
    from mil.analysis.slide_files import find_slides
    from mil.analysis.trained_run import open_run
    from mil.store.reading import Store
    from pathray.reports.progress import Progress
    from pathray.store.storage import Storage

    config = loaded.config
    check_output(config.output)
    config = with_absolute_paths(config, "run", "output", "slides", "store", "table")
    run = open_run(config.run)
    chosen = choose_slides(run.slides, ids=config.ids, worst=config.worst, best=config.best, everything=config.all)
    places = places_of(run, config)
    store = Store(places["store"])
    files = find_slides(places["slides"]) if places["slides"] else {}
    columns = columns_of(places["csv"], config.color_by, places["slide_column"]) if config.color_by else {}
    log.info("%d tested slides, %d chosen, %d slide files", len(run.slides), len(chosen), len(files))
    if loaded.dry_run:
        return tell((len(chosen), "slides"))
    spaces = [] if config.projection == "none" else spaces_of(run, store, config.projection)
    out = Storage.of(config.output)
    wanted = Wanted(config.top_tiles, config.max_px, config.mpp, config.geojson, config.object_type)
    analyst, rows = SlideAnalyst(run, store, files, out, wanted), []
    with Progress(len(chosen), "analysis", "slides") as progress:
        for name, why in chosen.items():
            rows.append(analyst.analyse(run.slides[name], why))
            progress.update()
    for row in rows:
        if row.error:
            log.warning("%s: %s", row.slide.slide_id, row.error)
    return Outputs(write_analysis(out, run, rows, spaces, columns, title=config.title or "Attention of a slide model"))


def places_of(run: TrainedRun, config: AnalyzeMILConfig) -> dict[str, str]:
    """Store, slides and table: as asked for, else as the training had them. Slides that are no longer where the
    training names them are none, and said so."""
    import os

    trained = run.settings()["data"]
    slides = config.slides or trained.get("slides") or ""
    if slides and not config.slides and "://" not in slides and not os.path.exists(slides):
        log.warning("the training's data.slides is not there: %s; maps will be on blank canvases", slides)
        slides = ""
    return {
        "store": config.store or str(trained["store"]), "slides": slides, "csv": config.table or str(trained["csv"]),
        "slide_column": str(trained.get("slide_column") or "slide_id"),
    }  # fmt: skip


if __name__ == "__main__":
    job(main, AnalyzeMILConfig, CONFIGS_DIR)
