"""OCT index → the geometry ledger as a page (spacing and sources per device, image share, problems) and as a CSV.

    python -m ray_jobs.audit_oct index=indexes/oct.parquet output=outputs/oct_audit.html

The CSV has every file of the index and is written next to the page. No file of the data set is opened. Needs no Ray.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import oct
from pathray.config.checks import check_at_least
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(oct.__file__).parent / "configs"
PAGE = ".html"


@dataclass
class AuditOctConfig:
    index: str = MISSING  # what ray_jobs.index_oct wrote
    output: str = placement(MISSING)  # the page, an .html file
    max_rows: int = placement(200)  # rows with a problem on the page; the CSV has all

    def __post_init__(self) -> None:
        check_at_least(self, "", 0, "max_rows")
        if is_set(self.output) and not self.output.endswith(PAGE):
            raise UserError("the page needs a file name", key="output", found=self.output, expected="audit.html")


def main(loaded: Loaded[AuditOctConfig]) -> Outputs | None:
    from oct.indexing.index_file import read_index

    config = loaded.config
    index = read_index(config.index)
    log.info("%s", index)
    if loaded.dry_run:
        return tell((index.table.num_rows, "files"))
    from oct.pictures.audit_page import audit_page
    from oct.pictures.ledger import build_ledger, to_csv
    from pathray.store.storage import write_atomic

    ledger = build_ledger(index)
    for name, rows in ledger.problems.items():
        if rows.any():
            log.info("%s: %s files", name, f"{int(rows.sum()):,}")
    table = config.output.removesuffix(PAGE) + ".csv"
    page = audit_page(index, ledger, most_rows=config.max_rows, csv_name=table.rpartition("/")[2])
    write_atomic(table, to_csv(ledger))
    write_atomic(config.output, page.encode())
    return Outputs({"page": config.output, "ledger": table})


if __name__ == "__main__":
    job(main, AuditOctConfig, CONFIGS_DIR)
