"""Extraction from slides: decides which slides to do and reports the results.

Not here: the job (ray_jobs.extract_features).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from ijepath.indexing.manifest import read_manifest
from pathray.errors import UserError
from pathray.features.bags import BagSummary, read_summary
from pathray.features.inputs import slides_in
from pathray.features.pictures import QUPATH, THUMBNAILS, PicturePaths
from pathray.features.publish import sweep
from pathray.features.slides import (
    SlideJob,
    SlideOutcome,
    SlideSettings,
    bag_fingerprint,
    extract_slide,
    slide_identity,
)
from pathray.reports.progress import Progress
from pathray.reports.summary import Picture, Summary, counts, write_summary
from pathray.reports.units import check_success, describe, write_report
from pathray.store.storage import Storage, file_state
from pathray.urls import public
from pathray.wsi.spacing import reused_note
from pathray.wsi.tiling import TileSpec
from ray_jobs.extract.actors import DIED, Row, map_in_threads, over_actors
from ray_jobs.extract.config import VOLUMES_ONLY, agree_on, check_unused, told_pooling
from ray_jobs.shell.dry_run import Needs, Slide, check_slides, tell

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec
    from ray_jobs.extract.config import ExtractConfig

log = logging.getLogger(__name__)
COLUMNS = (
    *("slide_id", "wsi_path", "status", "error", "tiles"),
    *("mpp0", "spacing_source", "source_mpp", "backend", "seconds"),
)
STATES = ("ok", "skipped", "empty", "failed")


@dataclass
class Slides:
    """The work to do: a report row for every slide, in input order, and jobs for those that need one."""

    config: ExtractConfig
    specs: Mapping[str, EncoderSpec]
    settings: SlideSettings
    rows: list[Row] = field(default_factory=list)
    jobs: list[tuple[int, SlideJob]] = field(default_factory=list)  # row number and job

    def __str__(self) -> str:
        of, tiles = self.settings, self.settings.tiles
        done = sum(row["status"] == "skipped" for row in self.rows)
        return (
            f"{len(self.rows)} slides, {done} already finished; tiles of {tiles.size_px} px at {tiles.mpp:g} µm/px "
            f"({tiles.size_um:g} µm) for {', '.join(self.specs)}; {told_pooling(self.specs, of.pooling)} as {of.dtype}"
        )

    def check(self) -> None:
        """The checks of a dry run: unfinished slides exist, have a spacing and are fine enough."""
        of, config = self.settings, self.config
        slides = [Slide(job.slide_id, job.wsi_path, job.mask_path, job.mpp, job.fallback_mpp) for _, job in self.jobs]
        failed = (row for row in self.rows if row["status"] == "failed")
        slides += [Slide(row["slide_id"], row["wsi_path"], error=row["error"]) for row in failed]
        needs = Needs((of.tiles.mpp,), of.max_enlargement, of.backend)
        tell((check_slides(slides, config.slides, config.min_success_fraction, needs), "slides to do"))

    def run(self) -> None:
        """Run the jobs on Ray, write the report in any case, and raise if too few slides are ok."""
        for name in (*self.specs, QUPATH):
            sweep(Storage.of(self.config.output).join(name))
        outcomes = over_actors(
            self.config, [job for _, job in self.jobs], extract_slide, _failed_outcome, self.settings, self.specs
        )
        try:
            with Progress(len(self.jobs), "extract", "slides", parts="tiles") as progress:
                for number, outcome in outcomes:
                    row = self.rows[self.jobs[number][0]]
                    row |= _columns(outcome or SlideOutcome("failed", DIED))
                    progress.update(1, row["tiles"] if row["status"] == "ok" else 0)
        finally:
            write_report(self.config.report, COLUMNS, self.rows, key="slide_id")
            write_summary(self.config.output, self._summary())
        self._log_result()
        check_success(self.rows, "slide_id", "slides", self.config.min_success_fraction, self.config.report)

    def _log_result(self) -> None:
        states = Counter(str(row["status"]) for row in self.rows)
        tiles = sum(row["tiles"] for row in self.rows if row["status"] == "ok")
        told = ", ".join(f"{count} {status}" for status, count in states.items())
        log.info("%d slides listed: %s; %d tiles; report: %s", len(self.rows), told, tiles, self.config.report)
        for status, what in (
            ("ok", "slides are enlarged or have no picture"),
            ("skipped", "bags would be rejected now"),
        ):
            if noted := [
                f"{row['slide_id']}: {row['error']}" for row in self.rows if row["status"] == status and row["error"]
            ]:
                log.warning("%d %s, for example %s", len(noted), what, noted[0])

    def _summary(self) -> Summary:
        of, tiles = self.settings, self.settings.tiles
        rows = {s: [(row["slide_id"], row["error"]) for row in self.rows if row["status"] == s] for s in STATES}
        done = sum(row["tiles"] for row in self.rows if row["status"] in ("ok", "skipped"))
        facts = {"source": self.config.slides, "slides": len(self.rows), **counts(row["status"] for row in self.rows)}
        return Summary(
            "Features of slides",
            facts | {"tiles": done, "encoders": ", ".join(self.specs)},
            {
                "tile": f"{tiles.size_px} px at {tiles.mpp:g} µm per pixel ({tiles.size_um:g} µm)",
                **{name: getattr(tiles, name) for name in ("overlap_px", "min_tissue_fraction", "edges")},
                **{name: getattr(of, name) for name in ("max_enlargement", "resize", "pooling", "precision", "dtype")},
            },
            failed=rows["failed"],
            skipped=[(slide, why or "already extracted, unchanged") for slide, why in rows["skipped"]] + rows["empty"],
            notes=[unit for unit in rows["ok"] if unit[1]],
            files={"report with a row per slide": self.config.report}
            | {f"bags of {name}": Storage.of(self.config.output).join(name) for name in self.specs},
            pictures=self._pictures(),
        )

    def _pictures(self) -> list[Picture]:
        """The existing pictures with their GeoJSON, except for slides that failed in this run."""
        store, shown = Storage.of(self.config.output), list[Picture]()
        there = set(store.list(THUMBNAILS)) if self.config.thumbnails else set[str]()
        for row in self.rows:
            name = row["slide_id"]
            if f"{name}.png" in there and row["status"] in ("ok", "skipped", "empty"):
                files = {"GeoJSON for QuPath": store.join(QUPATH, f"{name}.geojson")}
                shown.append(Picture(store.join(THUMBNAILS, f"{name}.png"), f"{name}: {row['tiles']:,} tiles", files))
        return shown


def plan(config: ExtractConfig, specs: Mapping[str, EncoderSpec]) -> Slides:
    """Check every slide and what is already finished. Raises UserError for problems of the config."""
    check_unused(config, VOLUMES_ONLY, "applies to volumes only")
    tiles = TileSpec(
        size_px=int(agree_on(specs, config.tile_px, "tile_px", "size_px")),
        mpp=agree_on(specs, config.mpp, "mpp", "mpp"),
        overlap_px=config.overlap_px,
        min_tissue_fraction=config.min_tissue_fraction,
        edges=config.edge_tiles,
    )
    for spec in specs.values():
        spec.input_px(tiles.size_px, tiles.size_px, resize=config.resize)
    settings = SlideSettings(
        tiles,
        spacing_tolerance=config.spacing_tolerance,
        resize=config.resize,
        pooling=config.pooling,
        precision=config.precision,
        dtype=config.dtype,
        max_enlargement=config.max_enlargement,
        parquet=config.slide_parquet,
        batch_size=config.batch_size,
        read_threads=config.read_threads,
        read_timeout_s=config.read_timeout_s,
        cache_bytes=config.tile_cache_mb << 20,
        backend=config.backend,
    )
    work = Slides(config, specs, settings)
    listed = _list_slides(config)
    for (job, _), (row, todo) in zip(listed, map_in_threads(lambda one: _check(work, *one), listed), strict=True):
        if todo:
            work.jobs.append((len(work.rows), todo))
        assert row["slide_id"] == job.slide_id
        work.rows.append(row)
    return work


def _list_slides(config: ExtractConfig) -> list[tuple[SlideJob, str]]:
    """The slides in input order, each with the error in its line or ""."""
    found = list[tuple[SlideJob, str]]()
    if config.slides.lower().endswith(".csv"):
        for row in read_manifest(config.slides):
            job = SlideJob(row.slide_id, row.wsi_path, row.mask_path, row.mpp, config.slide_mpp)
            found.append((job, row.error or _name_error(row.slide_id)))
        return found
    seen = set[str]()
    for slide_id, path in slides_in(config.slides):
        error = (
            f"another slide in this folder has the same id {slide_id!r}" if slide_id in seen else _name_error(slide_id)
        )
        seen.add(slide_id)
        found.append((SlideJob(slide_id, path, fallback_mpp=config.slide_mpp), error))
    return found


def _name_error(slide_id: str) -> str:
    if re.fullmatch(r"[^/\0]{1,200}", slide_id) and not slide_id.startswith("."):
        return ""
    return f"the slide_id {slide_id!r} cannot be used as a file name"


def _check(work: Slides, job: SlideJob, error: str) -> tuple[Row, SlideJob | None]:
    """The report row of a slide so far, and its job if there is something to do."""
    row = {"slide_id": job.slide_id, "wsi_path": public(job.wsi_path)}
    try:
        if error:
            raise UserError(error)
        mask_state = file_state(job.mask_path) if job.mask_path else ""
        job = replace(job, state=file_state(job.wsi_path), mask_state=mask_state)
    except Exception as e:  # any error of a file system is a failure of this slide only
        return row | _columns(SlideOutcome("failed", describe(e))), None
    output, bags, rows, note = Storage.of(work.config.output), list[tuple[str, str]](), 0, ""
    for name, spec in work.specs.items():
        path = output.join(name, f"{job.slide_id}.h5")
        found = None if work.config.overwrite else _read_finished_bag(work, path)
        if found is None or found.fingerprint != bag_fingerprint(job, spec, work.settings):
            bags.append((name, path))
        else:
            rows, note = found.rows, _note_if_too_coarse(found, work.settings)
    pictures = PicturePaths.of(work.config.output, job.slide_id, slide_identity(job), work.settings.tiles)
    drawn = not work.config.thumbnails or bool(note and not bags) or (not work.config.overwrite and pictures.current())
    if not bags and drawn:
        return row | _columns(SlideOutcome("skipped", note, rows)), None
    job = replace(job, bags=tuple(bags), pictures=None if drawn else pictures)
    return row | _columns(SlideOutcome("not done")), job


def _note_if_too_coarse(bag: BagSummary, settings: SlideSettings) -> str:
    """The note for a finished bag that max_enlargement would reject today; "" if none."""
    if bag.mpp is None or bag.source_mpp is None:
        return ""
    return reused_note([bag.source_mpp], bag.mpp, settings.max_enlargement)


def _read_finished_bag(work: Slides, path: str) -> BagSummary | None:
    summary = read_summary(path)
    if summary is None or not work.settings.parquet:
        return summary
    folder, _, name = path.removesuffix(".h5").rpartition("/")
    return summary if Storage.of(folder).exists(f"{name}.parquet") else None


def _failed_outcome(job: SlideJob, error: str) -> SlideOutcome:
    return SlideOutcome("failed", error)


def _columns(outcome: SlideOutcome) -> Row:
    return asdict(outcome) | {"seconds": round(outcome.seconds, 2)}
