"""Slides of a slide index (or a folder of images) → one zip of square patches each, for ray_jobs.index_patches.

    python -m ray_jobs.cut_patches slides=indexes/slide_metadata.parquet output=data/zips
    python -m ray_jobs.cut_patches images=data/images size=224 output=data/zips
    python -m ray_jobs.cut_patches images=data/images image_mpp=0.25 mpp=0.5 output=data/zips

From slides it cuts the tiles of a regular grid with enough tissue, at `mpp`. From images it cuts adjacent squares, one
zip per subfolder; pixels are used as they are, or resampled to `mpp` if `image_mpp` is given, so that they match
patches of slides. Images smaller than `size` are skipped and reported with their size. Finished archives are kept, and
made again if their source or the settings changed.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adios
from pathray.config.checks import check_at_least, check_positive
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from pathray.wsi.spacing import MAX_ENLARGEMENT
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

if TYPE_CHECKING:
    from adios.patches.cut import CutOutcome, ImagesCut, SlideCut
    from pathray.reports.summary import Summary
    from pathray.wsi.tiling import TileSpec

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(adios.__file__).parent / "configs"
COLUMNS = ("name", "status", "error", "patches", "refused")


@dataclass
class CutPatchesConfig:
    slides: str = ""  # output of ray_jobs.index_slides; its ok slides are cut
    images: str = ""  # instead of slides: a folder (or URL) of images
    output: str = MISSING  # a folder or URL for the archives
    report: str = ""  # CSV with one row per archive; "" = OUTPUT/report.csv
    size: int = 448  # side of a patch in pixels
    mpp: float = 0.5  # µm per pixel of the patches; for images only if image_mpp is given
    image_mpp: float | None = None  # µm per pixel of the images; null: unknown, no resampling
    min_tissue_fraction: float = 0.5  # least share of tissue in a patch, for slides only
    overlap_px: int = 0  # overlap of neighbouring patches
    min_success_fraction: float = 1.0  # of the archives
    max_enlargement: float = MAX_ENLARGEMENT  # of a slide's finest level or of an image; archives that need more fail
    archive_timeout_s: float = placement(6 * TIMEOUT_S)  # an archive that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if is_set(self.output) and not self.report:
            self.report = f"{self.output.rstrip('/')}/report.csv"
        if not 1 <= self.size <= 9999:
            raise UserError("size must be between 1 and 9999", key="size", found=self.size, expected="1 to 9999")
        check_positive(self, "", "image_mpp")
        check_at_least(self, "", 1, "max_enlargement")
        if self.image_mpp is not None and self.slides:
            message = "image_mpp cannot be set with slides, which have their own spacing"
            raise UserError(message, key="image_mpp", found=self.image_mpp, expected="null, or images=FOLDER")
        if not 0 <= self.min_success_fraction <= 1:
            found = self.min_success_fraction
            message = "min_success_fraction must be between 0 and 1"
            raise UserError(message, key="min_success_fraction", found=found, expected="0 to 1")


def main(loaded: Loaded[CutPatchesConfig]) -> Outputs | None:
    config = loaded.config
    spec, jobs = tile_spec(config), jobs_of(config)
    log.info("%d archives of patches of %d px into %s", len(jobs), config.size, config.output)
    if loaded.dry_run:
        return rehearse(config, jobs)
    with ray_session(config.runtime):
        build(config, spec, jobs)
    return Outputs({"archives": config.output, "report": config.report})


def rehearse(config: CutPatchesConfig, jobs: list[SlideCut | ImagesCut]) -> None:
    """UserError if too many slides of the index no longer exist or are too coarse for the patches."""
    from ray_jobs.shell.dry_run import Needs, check_slides, of_index, tell

    if config.images:
        return tell((len(jobs), "archives"), (sum(len(one.paths) for one in jobs if hasattr(one, "paths")), "images"))
    from ijepath.indexing.index import read_index

    needs = Needs((config.mpp,), config.max_enlargement)
    slides = of_index(read_index(config.slides).rows)
    tell((check_slides(slides, config.slides, config.min_success_fraction, needs), "slides"))


def tile_spec(config: CutPatchesConfig) -> TileSpec:
    from pathray.wsi.tiling import TileSpec

    return TileSpec(config.size, config.mpp, config.overlap_px, config.min_tissue_fraction)


def jobs_of(config: CutPatchesConfig) -> list[SlideCut | ImagesCut]:
    """The archives to cut, by name. UserError for neither or both sources, or for a name that no file can have."""
    if bool(config.slides) == bool(config.images):
        found = f"slides={config.slides!r} images={config.images!r}"
        raise UserError("set either slides or images", key="slides", found=found, expected="one of them")
    jobs = _of_slides(config) if config.slides else _of_images(config)
    for one in jobs:
        if not re.fullmatch(r"[^/\\\0.][^/\\\0]{0,200}", one.name):
            source = config.slides or config.images
            message = "the slide_id cannot be used as a file name"
            raise UserError(message, file=source, key="slide_id", found=one.name, expected="a name without / and \\")
    return jobs


def _of_slides(config: CutPatchesConfig) -> list[SlideCut | ImagesCut]:
    from adios.patches.cut import SlideCut
    from ijepath.indexing.index import read_index

    rows = [row for row in read_index(config.slides).rows if row["status"] == "ok"]
    if not rows:
        raise UserError("the index has no slide with status ok", file=config.slides)
    return [
        SlideCut(
            row["slide_id"],
            _archive(config, row["slide_id"]),
            row["wsi_path"],
            row["wsi_level0_spacing_mpp"],
            row["mask_path"] or "",
            max_enlargement=config.max_enlargement,
        )
        for row in sorted(rows, key=lambda row: row["slide_id"])
    ]


def _of_images(config: CutPatchesConfig) -> list[SlideCut | ImagesCut]:
    from adios.patches.cut import ImagesCut
    from pathray.features.inputs import images_in

    listed, groups = images_in(config.images), dict[str, list[str]]()
    for name, path in zip(listed.names, listed.paths, strict=True):
        folder = name.rpartition("/")[0] or config.images.rstrip("/").rpartition("/")[2]
        groups.setdefault(folder.replace("/", "__"), []).append(path)
    return [
        ImagesCut(
            name, _archive(config, name), tuple(groups[name]), config.image_mpp, max_enlargement=config.max_enlargement
        )
        for name in sorted(groups)
    ]


def _archive(config: CutPatchesConfig, name: str) -> str:
    return f"{config.output.rstrip('/')}/{name}.zip"


def build(config: CutPatchesConfig, spec: TileSpec, jobs: list[SlideCut | ImagesCut]) -> list[dict[str, Any]]:
    """Cut on the running Ray, write the report in any case, and raise if too few archives could be made."""
    from adios.patches.cut import cut_if_needed
    from pathray.reports.summary import write_summary
    from pathray.reports.units import check_success, write_report

    rows = list[dict[str, Any]]()
    try:
        with Progress(len(jobs), "cut", "archives", parts="patches") as progress:
            over_ray = RayMap(_lost_outcome, timeout_s=config.archive_timeout_s)
            for one, outcome in zip(jobs, over_ray(partial(cut_if_needed, spec=spec), jobs), strict=True):
                rows.append({"name": one.name, **asdict(outcome)})
                progress.update(1, outcome.patches if outcome.status == "ok" else 0)
    finally:
        write_report(config.report, COLUMNS, rows, key="name")
        write_summary(config.output, summary_of(config, spec, rows, len(jobs)))
    counts = {s: sum(row["status"] == s for row in rows) for s in ("ok", "skipped", "empty", "failed")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    log.info("%s; %d patches; report: %s", told, sum(row["patches"] for row in rows), config.report)
    for status, what in (("ok", "archives have notes"), ("skipped", "archives would be rejected now")):
        if noted := [f"{row['name']}: {row['error']}" for row in rows if row["status"] == status and row["error"]]:
            log.warning("%d %s, for example %s", len(noted), what, noted[0])
    check_success(rows, "name", "archives", config.min_success_fraction, config.report)
    return rows


def summary_of(config: CutPatchesConfig, spec: TileSpec, rows: list[dict[str, Any]], asked: int) -> Summary:
    """The summary.md of the archives."""
    from pathray.reports.summary import Summary, counts

    facts: dict[str, object] = {"cut from": config.slides or config.images, "archives": asked}
    facts |= counts(row["status"] for row in rows)
    if len(rows) < asked:
        facts["not done"] = asked - len(rows)
    facts["patches"] = sum(row["patches"] for row in rows)
    if refused := sum(row["refused"] for row in rows):
        facts["skipped images"] = refused
    settings: dict[str, object] = {"size": config.size, "overlap_px": config.overlap_px}
    if config.slides or config.image_mpp:
        settings |= {"mpp": spec.mpp, "a patch in µm": spec.size_um, "max_enlargement": config.max_enlargement}
    if config.slides:
        settings["min_tissue_fraction"] = config.min_tissue_fraction
    of = {status: [row for row in rows if row["status"] == status] for status in ("ok", "skipped", "empty", "failed")}
    return Summary(
        "Patches",
        facts,
        settings,
        failed=[(row["name"], row["error"]) for row in of["failed"]],
        skipped=[(row["name"], row["error"] or "already cut, unchanged") for row in of["skipped"] + of["empty"]],
        notes=[(row["name"], row["error"]) for row in of["ok"] if row["error"]],
        files={"report with a row per archive": config.report},
    )


def _lost_outcome(one: SlideCut | ImagesCut, error: Exception) -> CutOutcome:
    from adios.patches.cut import CutOutcome

    return CutOutcome("failed", f"cutting it {error}")


if __name__ == "__main__":
    job(main, CutPatchesConfig, CONFIGS_DIR)
