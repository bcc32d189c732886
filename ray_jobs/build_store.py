"""Bags of features (H5) → a feature store: memory-mapped chunks, capped per slide, with a digest of every slide.

    python -m ray_jobs.build_store data.features=features/uni2h data.store=stores/uni2h
    python -m ray_jobs.build_store data.features=OLD_STORE data.store=stores/uni2h
    python -m ray_jobs.build_store data=gej encoder=uni2h storage.max_instances=16384 storage.filter_by_csv=true

Layouts of Pathray, CLAM, TRIDENT and STAMP are read, and the predecessor's store (a folder with index_arrays.npz).
Slides are written in parallel. The store replaces an older one when it is whole, and not if fewer than
`min_success_fraction` of the listed slides can be stored (exit code 2). A later start does nothing if no bag and no
setting has changed.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mil.sections import CONFIGS_DIR, GROUPS, CohortConfig, StorageConfig
from pathray.config.checks import check_at_least, check_between
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session
from ray_jobs.train.training_jobs import absolute

if TYPE_CHECKING:
    from mil.store.places import BuildSettings, Source
    from mil.store.sources import Listed
    from mil.store.write import Written

log = logging.getLogger(__name__)
COLUMNS = ("slide_id", "status", "error", "listed_rows", "rows", "path")


@dataclass
class BuildStoreConfig(CohortConfig):
    storage: StorageConfig = field(default_factory=StorageConfig)
    min_success_fraction: float = 1.0  # of the listed slides
    rebuild: bool = placement(False)  # although nothing has changed
    slides_per_task: int = placement(4)
    slide_timeout_s: float = placement(TIMEOUT_S)  # a slide that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_between(self, "", 0, 1, "min_success_fraction")
        check_at_least(self, "", 1, "slides_per_task")


def main(loaded: Loaded[BuildStoreConfig]) -> Outputs | None:
    from mil.store.open_bags import file_of
    from mil.store.sources import find_bags, is_current

    config = make_paths_absolute(loaded.config)
    data, storage = config.data, config.storage
    csv, folder = data.csv if storage.filter_by_csv else None, str(data.features)
    listed = find_bags(folder, csv, data.slide_column)
    log.info("%d bags in %s; %d listed slides have none", len(listed.sources), folder, len(listed.missing))
    if loaded.dry_run:
        return tell((check_files([file_of(one.path) for one in listed.sources], folder, "data.features"), "bags"))
    outputs = Outputs({"store": data.store, "report": report_path(config)})
    settings = settings_of(storage)
    if not config.rebuild and is_current(str(data.store), listed.sources, settings):
        log.info("nothing has changed: %s; rebuild=true builds it again", data.store)
        return outputs
    with ray_session(config.runtime):
        build(config, listed, settings)
    return outputs


def build(config: BuildStoreConfig, listed: Listed, settings: BuildSettings) -> None:
    """Build the store on the running Ray and put it in its place. UserError if too many slides fail."""
    from mil.store.build import StoreBuild
    from mil.store.places import Header, read_header
    from mil.store.write import Written, write_slide
    from pathray.reports.units import check_success
    from pathray.run.fence import hold

    def over_ray(lost: Any) -> RayMap:
        return RayMap(lost, chunk=config.slides_per_task, timeout_s=config.slide_timeout_s)

    def lost_place(place: Any, error: Exception) -> Written:
        return Written(place.source, error=str(error))

    def lost_source(source: Source, error: Exception) -> Header:
        return Header(source, error=str(error))

    store = str(config.data.store)
    with hold(lock := lock_of(store)):
        headers = list(over_ray(lost_source)(read_header, listed.sources))
        with StoreBuild(store, settings, headers) as building, Progress(len(building.places), "store", "slides") as bar:
            written = list[Written]()
            for one in over_ray(lost_place)(write_slide, building.places):
                written.append(one)
                bar.update()
            failed = [Written(h.source, error=h.error) for h in headers if h.error]
            rows = rows_of([*written, *failed], listed)
            report(config, rows)
            check_success(rows, "slide_id", "slides", config.min_success_fraction, report_path(config))
            building.finish(written)
    if config.storage.save_coverage_thumbnails:
        draw_coverage(store)
    with contextlib.suppress(OSError):
        Path(lock).rmdir()


def draw_coverage(store: str) -> None:
    """A picture of each capped slide in the folder coverage_qc of the store."""
    from mil.store.coverage import FOLDER, write_pictures
    from mil.store.reading import Store

    opened = Store(store)
    pictures = f"{store.rstrip('/')}/{FOLDER}"
    drawn = write_pictures(opened, opened.capped, pictures)
    log.info("%d pictures of capped slides in %s", drawn, pictures)


def lock_of(store: str) -> str:
    """The folder that says who builds a store: beside it, since the store itself is replaced."""
    path = Path(store)
    return str(path.with_name(f".{path.name}-lock"))


def rows_of(written: list[Written], listed: Listed) -> list[dict[str, Any]]:
    """A row of the report for every listed slide."""
    rows: list[dict[str, Any]] = [{"slide_id": n, "status": "failed", "error": why} for n, why in listed.missing]
    for one in written:
        facts = {"slide_id": one.source.slide_id, "path": one.source.path}
        known = {k: (one.row or {}).get(k) for k in ("listed_rows", "rows")}
        rows.append({**facts, **known, "status": "failed" if one.error else "ok", "error": one.error})
    return sorted(rows, key=lambda row: str(row["slide_id"]))


def report(config: BuildStoreConfig, rows: list[dict[str, Any]]) -> None:
    """Write the report and log the closing line: listed = ok + failed."""
    from pathray.reports.units import write_report

    ok = [row for row in rows if row["status"] == "ok"]
    tiles, capped = sum(row["rows"] for row in ok), sum(row["rows"] < row["listed_rows"] for row in ok)
    write_report(report_path(config), COLUMNS, rows)
    log.info(
        "%d listed = %d ok + %d failed; %s tiles, %d slides capped; report: %s",
        len(rows), len(ok), len(rows) - len(ok), f"{tiles:,}", capped, report_path(config),
    )  # fmt: skip


def report_path(config: BuildStoreConfig) -> str:
    return f"{str(config.data.store).rstrip('/')}_report.csv"


def settings_of(storage: StorageConfig) -> BuildSettings:
    from mil.store.places import BuildSettings

    own = {key: getattr(storage, key) for key in ("dtype", "max_instances", "cap_strategy", "cap_grid_size", "seed")}
    return BuildSettings(**own, chunk_bytes=int(storage.chunk_gb * 1e9))


def make_paths_absolute(config: BuildStoreConfig) -> BuildStoreConfig:
    """UserError for a required path that is not given."""
    data = config.data
    needed = {"features": "a folder of SLIDE_ID.h5", "store": "a folder for the store"}
    needed |= {"csv": "a table of slides"} if config.storage.filter_by_csv else {}
    for key, expected in needed.items():
        if not getattr(data, key):
            raise UserError(f"data.{key} is required", key=f"data.{key}", expected=expected)
    paths: dict[str, Any] = {key: absolute(getattr(data, key)) for key in ("csv", "features", "store")}
    if "://" in str(paths["store"]):
        expected = "a folder on a disk that all machines share"
        raise UserError("a store is memory-mapped", key="data.store", found=data.store, expected=expected)
    return replace(config, data=replace(data, **paths))


if __name__ == "__main__":
    job(main, BuildStoreConfig, CONFIGS_DIR, GROUPS)
