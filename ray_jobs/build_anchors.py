"""Slide index and profile → anchor catalog (JSON manifest and parquet shards), a report per slide and summary.md.

    python -m ray_jobs.build_anchors slide_index=indexes/slide_metadata.parquet \\
        profile=ctx1p0_tgt0p5_fov512um_k4 output=indexes/anchor_catalog_manifest.json

A slide that cannot be read becomes a row of the report. The exit code is 2 if fewer than `min_success_fraction` of the
index's ok slides could be read, or if there is no anchor. `resume=true` keeps a catalog that is up to date.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijepath
from ijepath.indexing.anchors import SlideAnchors, anchors_of
from ijepath.indexing.catalog import STRATUM_KEY, stale_reason, stratum_key
from ijepath.indexing.catalog_writer import REPORT_COLUMNS, ROWS_PER_SHARD, report_line, write_catalog
from ijepath.indexing.index import SlideIndex, read_index
from ijepath.indexing.manifest import folder_of
from ijepath.profile import Profile, name_by_geometry
from pathray.config.load import MISSING, Group, Loaded, is_set, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from pathray.reports.summary import Summary, counts, write_summary
from pathray.reports.units import check_success, write_report
from pathray.wsi.spacing import MAX_ENLARGEMENT
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(ijepath.__file__).parent / "configs"
GROUPS = (Group("profile", "profile", name_by_geometry),)


@dataclass
class BuildAnchorsConfig:
    slide_index: str = MISSING  # output of ray_jobs.index_slides
    output: str = MISSING  # the catalog's manifest, a JSON file; shards are written to anchors/ next to it
    report: str = ""  # CSV with one row per slide; "" = next to the output
    profile: Profile = field(default_factory=Profile)
    sampling_stratum_key: str = STRATUM_KEY  # metadata column that defines the strata
    resume: bool = False  # do nothing if the catalog is up to date
    min_success_fraction: float = 1.0
    max_enlargement: float = MAX_ENLARGEMENT  # of a slide's finest level; slides that need more fail
    rows_per_shard: int = ROWS_PER_SHARD
    slide_timeout_s: float = placement(TIMEOUT_S)  # a slide that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        self.profile.validate()
        if is_set(self.output) and not self.report:
            self.report = self.output.removesuffix(".json") + "_report.csv"
        if not 0 <= self.min_success_fraction <= 1:
            found = self.min_success_fraction
            message = "min_success_fraction must be between 0 and 1"
            raise UserError(message, key="min_success_fraction", found=found, expected="0 to 1")
        if is_set(self.output) and (self.output.endswith("/") or os.path.isdir(self.output)):
            expected = f"a file: {self.output.rstrip('/')}/anchor_catalog_manifest.json"
            raise UserError(
                "the output must be a file, not a folder", key="output", found=self.output, expected=expected
            )
        if not self.max_enlargement >= 1:
            message = "max_enlargement must be >= 1"
            raise UserError(message, key="max_enlargement", found=self.max_enlargement, expected="at least 1")
        if self.rows_per_shard < 1:
            message = "rows_per_shard must be >= 1"
            raise UserError(message, key="rows_per_shard", found=self.rows_per_shard, expected="at least 1")


def main(loaded: Loaded[BuildAnchorsConfig]) -> Outputs | None:
    config = loaded.config
    index = read_index(config.slide_index)
    strata = stratum_key(config.sampling_stratum_key, index.metadata_columns)
    stale = stale_reason(config.output, config.profile, config.slide_index, config.sampling_stratum_key)
    log.info("%d slides, profile %s, strata by %s", len(index.rows), config.profile.name, strata or "nothing (one)")
    log.info("catalog: %s", stale or "current")
    if loaded.dry_run:
        return rehearse(config, index)
    if stale or not config.resume:
        with ray_session(config.runtime):
            build(config, index)
    return Outputs({"catalog": config.output, "report": config.report})


def rehearse(config: BuildAnchorsConfig, index: SlideIndex) -> None:
    """UserError if too many slides of the index no longer exist or are too coarse for the profile."""
    from ray_jobs.shell.dry_run import Needs, check_slides, of_index, tell

    profile = config.profile
    needs = Needs((profile.context_effective_mpp, profile.target_effective_mpp), config.max_enlargement)
    tell((check_slides(of_index(index.rows), config.slide_index, config.min_success_fraction, needs), "slides"))


def build(config: BuildAnchorsConfig, index: SlideIndex) -> dict[str, Any]:
    """Build the catalog of `index` on the running Ray, write it with report and summary, and return its manifest."""
    report: list[dict[str, Any]] = []
    manifest: dict[str, Any] = {}
    try:
        with Progress(len(index.rows), "anchors", "slides") as progress:
            over_ray = RayMap(_lost_slide, chunk=4, timeout_s=config.slide_timeout_s)
            found = anchors_of(index.rows, config.profile, max_enlargement=config.max_enlargement, map=over_ray)
            manifest = write_catalog(
                config.output,
                config.profile,
                _record_reports(found, report, progress),
                slide_index=config.slide_index,
                metadata_columns=index.metadata_columns,
                sampling_stratum_key=config.sampling_stratum_key,
                rows_per_shard=config.rows_per_shard,
            )
    finally:
        write_report(config.report, REPORT_COLUMNS, report)
        write_summary(folder_of(config.output), summary_of(config, report, manifest))
    if noted := [
        f"{line['slide_id']}: {line['detail']}" for line in report if line["status"] == "ok" and line["detail"]
    ]:
        log.warning("%d slides are enlarged, for example %s", len(noted), noted[0])
    log.info("%d anchors: %s", manifest["total_anchors"], manifest["stratum_counts"])
    tried = [line for line in report if line["reason"] != "slide_status_not_ok"]
    check_success(tried, "slide_id", "slides", config.min_success_fraction, config.report, "detail")
    return manifest


def summary_of(config: BuildAnchorsConfig, report: list[dict[str, Any]], manifest: dict[str, Any]) -> Summary:
    """The summary.md of a catalog; `manifest` is empty if the catalog could not be written."""
    of, name = config.profile, config.output.rpartition("/")[2]
    why = [(line["slide_id"], f"{line['reason']}: {line['detail']}", line["status"]) for line in report]
    strata = {f"stratum {key or '(none)'}": n for key, n in list(manifest.get("stratum_counts", {}).items())[:20]}
    return Summary(
        f"Anchors {name}",
        {
            "slide index": config.slide_index,
            "slides": len(report),
            **counts(line["status"] for line in report),
            "anchors": sum(line["anchors"] for line in report),
            **(strata or {"catalog": "not written"}),
        },
        {
            "profile": of.name,
            "context": f"{of.context_fov_um:g} µm at {of.context_effective_mpp:g} µm per pixel",
            "target": f"{of.target_fov_um:g} µm at {of.target_effective_mpp:g} µm per pixel",
            "min_tissue_fraction": of.min_tissue_fraction,
            "max_enlargement": config.max_enlargement,
        },
        failed=[(slide, reason) for slide, reason, status in why if status == "failed"],
        skipped=[(slide, reason) for slide, reason, status in why if status == "skipped"],
        notes=[(line["slide_id"], line["detail"]) for line in report if line["status"] == "ok" and line["detail"]],
        files={"catalog": config.output, "report with a row per slide": config.report},
    )


def _record_reports(
    results: Iterable[SlideAnchors], report: list[dict[str, Any]], progress: Progress
) -> Iterator[SlideAnchors]:
    for anchors in results:
        report.append(report_line(anchors))
        progress.update()
        yield anchors


def _lost_slide(slide: dict[str, Any], error: Exception) -> SlideAnchors:
    """The outcome of a slide whose process died."""
    return SlideAnchors(slide, "error", f"reading this slide {error}")


if __name__ == "__main__":
    job(main, BuildAnchorsConfig, CONFIGS_DIR, GROUPS)
