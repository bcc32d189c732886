"""Folder of zipped patches (or a dataset_index.pkl) → patch index (parquet) and a table of unreadable patches.

    python -m ray_jobs.index_patches source=data/zips output=indexes/patches.parquet

Only the archives' directories are read, in parallel. Finished parts are kept in `OUTPUT_parts/`, so a killed job
resumes and only new archives of a folder are read. If more than `max_corrupt_fraction` of the archives or members are
unusable, no index is written and the exit code is 2; OUTPUT_quarantine.parquet lists them in any case.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import adios
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

if TYPE_CHECKING:
    from adios.patches.index import Archive
    from adios.patches.index_writer import Summary

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(adios.__file__).parent / "configs"


@dataclass
class IndexPatchesConfig:
    source: str = MISSING  # a folder (or URL) with zips at any depth, or a dataset_index.pkl
    output: str = MISSING  # the index, a parquet file
    max_corrupt_fraction: float = 0.05  # of the archives, and of their members
    archives_per_task: int = placement(8)
    archive_timeout_s: float = placement(TIMEOUT_S)  # an archive that takes longer is left out; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_corrupt_fraction <= 1:
            found = self.max_corrupt_fraction
            message = "max_corrupt_fraction must be between 0 and 1"
            raise UserError(message, key="max_corrupt_fraction", found=found, expected="0 to 1")
        if self.archives_per_task < 1:
            message = "archives_per_task must be >= 1"
            raise UserError(message, key="archives_per_task", found=self.archives_per_task, expected="at least 1")


def main(loaded: Loaded[IndexPatchesConfig]) -> Outputs | None:
    from adios.patches.index import archives_of
    from adios.patches.index_writer import quarantine_path

    config = loaded.config
    root, archives = archives_of(config.source)
    log.info("%d archives in %s", len(archives), config.source)
    if loaded.dry_run:
        return tell((check_files([archive.path for archive in archives], config.source, "source"), "archives"))
    with ray_session(config.runtime):
        build(config, root, archives)
    return Outputs({"index": config.output, "quarantine": quarantine_path(config.output)})


def build(config: IndexPatchesConfig, root: str, archives: list[Archive]) -> Summary:
    """Write the index of `archives` on the running Ray."""
    from adios.patches.index_writer import index_patches, report_death

    with Progress(len(archives), "index", "archives") as progress:
        summary = index_patches(
            root,
            archives,
            config.output,
            max_corrupt_fraction=config.max_corrupt_fraction,
            map=RayMap(report_death, chunk=config.archives_per_task, timeout_s=config.archive_timeout_s),
            tick=progress.update,
        )
    log.info("%s", summary)
    return summary


if __name__ == "__main__":
    job(main, IndexPatchesConfig, CONFIGS_DIR)
