"""A feature store → a picture per slide of the tiles that it keeps and discards. Needs no Ray.

python -m ray_jobs.visualize_coverage data.store=stores/uni2h output=outputs/coverage_qc only_capped=true
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mil.sections import CONFIGS_DIR, GROUPS, CohortConfig
from pathray.config.checks import check_positive
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)


@dataclass
class VisualizeCoverageConfig(CohortConfig):
    output: str = ""  # folder of the pictures; "" = coverage_qc next to the store
    only_capped: bool = False  # leave out slides whose tiles are all kept
    max_slides: int | None = placement(None)  # the first ones; null: all

    def __post_init__(self) -> None:
        check_positive(self, "", "max_slides")


def main(loaded: Loaded[VisualizeCoverageConfig]) -> Outputs | None:
    from mil.store.coverage import FOLDER, write_pictures
    from mil.store.reading import Store

    config = loaded.config
    if not config.data.store:
        raise UserError("data.store is required", key="data.store", expected="a folder that build_store wrote")
    store = Store(config.data.store)
    wanted = (store.capped if config.only_capped else list(range(len(store))))[: config.max_slides]
    if loaded.dry_run:
        return tell((len(wanted), "slides"))
    folder = config.output or f"{store.path}_{FOLDER}"
    with Progress(len(wanted), "coverage", "slides") as progress:
        drawn = write_pictures(store, wanted, folder, progress.update)
    log.info("%d pictures in %s; %d slides without positions", drawn, folder, len(wanted) - drawn)
    return Outputs({"pictures": folder})


if __name__ == "__main__":
    job(main, VisualizeCoverageConfig, CONFIGS_DIR, GROUPS)
