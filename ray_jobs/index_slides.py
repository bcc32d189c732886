"""Slide manifest (CSV) → slide index (parquet), a report of slides that could not be read, and summary.md.

    python -m ray_jobs.index_slides manifest=slides.csv output=indexes/slide_metadata.parquet report=indexes/report.csv

The exit code is 2 if fewer than `min_success_fraction` of the slides are ok; index and report are still written.
`resume=true` keeps the ok rows of an older index whose files did not change, and retries failed ones.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijepath
from ijepath.indexing.index import (
    COLUMNS,
    REPORT_COLUMNS,
    Row,
    SlideIndex,
    failed_row,
    index_slides,
    keep_first_results,
    read_index,
    write_index,
)
from ijepath.indexing.manifest import Manifest, ManifestRow, folder_of, read_manifest
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import MissingFile, UserError
from pathray.reports.progress import Progress
from pathray.reports.summary import Summary, counts, write_summary
from pathray.reports.units import check_success, write_report
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import Needs, check_slides, of_manifest, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(ijepath.__file__).parent / "configs"


@dataclass
class IndexSlidesConfig:
    manifest: str = MISSING  # CSV with columns slide_id,wsi_path,mask_path and any metadata (organ, site, mpp …)
    output: str = MISSING  # the index, a parquet file
    report: str = ""  # CSV with one row per slide; "" = next to the output
    resume: bool = False  # keep ok rows whose files did not change, retry failed ones
    min_success_fraction: float = 1.0
    backend: str = "auto"  # how slides are opened: auto, tiff, tiffslide, openslide, fastslide or opensdpc
    slides_per_task: int = 8
    slide_timeout_s: float = placement(TIMEOUT_S)  # a slide that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if is_set(self.output) and not self.report:
            self.report = self.output.removesuffix(".parquet") + "_report.csv"
        if is_set(self.output) and (self.output.endswith("/") or os.path.isdir(self.output)):
            expected = f"a file: {self.output.rstrip('/')}/slides.parquet"
            raise UserError(
                "the output must be a file, not a folder", key="output", found=self.output, expected=expected
            )
        if not 0 <= self.min_success_fraction <= 1:
            found = self.min_success_fraction
            message = "min_success_fraction must be between 0 and 1"
            raise UserError(message, key="min_success_fraction", found=found, expected="0 to 1")
        if self.slides_per_task < 1:
            message = "slides_per_task must be >= 1"
            raise UserError(message, key="slides_per_task", found=self.slides_per_task, expected="at least 1")


def main(loaded: Loaded[IndexSlidesConfig]) -> Outputs | None:
    config = loaded.config
    manifest = read_manifest(config.manifest, reserved=COLUMNS)
    previous = previous_rows(config)
    log.info("%d slides in %s, %d already indexed", len(manifest), config.manifest, len(previous))
    if loaded.dry_run:
        needs = Needs(backend=config.backend)
        slides = of_manifest(manifest)
        return tell((check_slides(slides, config.manifest, config.min_success_fraction, needs), "slides"))
    with ray_session(config.runtime):
        index = build(config, manifest, previous)
    ok = len(index.rows) - len(index.failed_rows)
    log.info("%d of %d slides are ok; report: %s", ok, len(index.rows), config.report)
    check_success(index.rows, "slide_id", "slides", config.min_success_fraction, config.report)
    return Outputs({"index": config.output, "report": config.report})


def build(
    config: IndexSlidesConfig, manifest: Manifest, previous: tuple[Row, ...] = (), begun: tuple[Row, ...] = ()
) -> SlideIndex:
    """Index the slides of `manifest` on the running Ray; write and return the index, with a report and a summary.

    For a run that started with the rows `begun`, the index is written as `keep_first_results` returns it.
    """
    over_ray = RayMap(_lost_row, chunk=config.slides_per_task, timeout_s=config.slide_timeout_s)
    rows = []
    with Progress(len(manifest), "index", "slides") as progress:
        for row in index_slides(manifest, previous=previous, backend=config.backend, map=over_ray):
            rows.append(row)
            progress.update()
    index = SlideIndex(tuple(rows), manifest.metadata_columns)
    write_index(config.output, keep_first_results(index, begun))
    write_report(config.report, REPORT_COLUMNS, index.rows)
    write_summary(folder_of(config.output), summary_of(config, index, previous))
    return index


def summary_of(config: IndexSlidesConfig, index: SlideIndex, previous: tuple[Row, ...]) -> Summary:
    """The summary.md of an index."""
    rows, before = index.rows, {row["slide_id"]: row for row in previous}
    ok = [row for row in rows if row["status"] == "ok"]
    spacings = sorted(row["wsi_level0_spacing_mpp"] for row in ok)
    facts: dict[str, object] = {"manifest": config.manifest, "slides": len(rows), **counts(r["status"] for r in rows)}
    facts["with a mask"] = sum(bool(row["mask_path"]) for row in ok)
    if ok:
        facts["µm per pixel of level 0"] = f"{spacings[0]:.4g} to {spacings[-1]:.4g}"
        for what in ("spacing_source", "backend"):
            facts[what] = ", ".join(f"{name} {n:,}" for name, n in counts(row[what] for row in ok).items())
    return Summary(
        f"Slide index {config.output.rpartition('/')[2]}",
        facts,
        {"backend": config.backend, "min_success_fraction": config.min_success_fraction},
        failed=[(row["slide_id"], row["error"]) for row in rows if row["status"] != "ok"],
        skipped=[(r["slide_id"], "already indexed, unchanged") for r in ok if before.get(r["slide_id"]) == r],
        notes=[(row["slide_id"], row["spacing_note"]) for row in ok if row["spacing_note"]],
        files={"index": config.output, "report with a row per slide": config.report},
    )


def previous_rows(config: IndexSlidesConfig) -> tuple[Row, ...]:
    if not config.resume:
        return ()
    try:
        return read_index(config.output).rows
    except MissingFile:
        return ()


def _lost_row(item: tuple[ManifestRow, Any], error: Exception) -> Row:
    """The failed row of a slide whose indexing process died."""
    return failed_row(item[0], f"reading this slide {error}")


if __name__ == "__main__":
    job(main, IndexSlidesConfig, CONFIGS_DIR)
