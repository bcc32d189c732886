"""Volumes of an index → lossless HTJ2K DICOM, which decodes several times faster, and their manifest.

    python -m ray_jobs.prepare_oct index=indexes/oct.parquet output=gs://bucket/oct_htj2k
    python -m ray_jobs.index_oct manifest=gs://bucket/oct_htj2k/manifest.tsv output=indexes/oct_htj2k.parquet

Pixels are equal bit by bit, which is checked before a file is published; all other attributes and the SOP instance UID
are kept. Excluded files of the index are left out and counted. A later start prepares only what is new or changed; one
start at a time writes to an output. The exit code is 2 if fewer than `min_success_fraction` of the volumes could be
prepared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import oct
from pathray.config.checks import check_at_least, check_between
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from pathray.run.fence import hold
from pathray.store.outages import through_outages
from pathray.urls import holds_secret, public
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session
from ray_jobs.train.training_jobs import with_absolute_paths

if TYPE_CHECKING:
    from oct.indexing.index_file import VolumeIndex
    from oct.transfer.ledger import Ledger, Row
    from oct.transfer.prepare import VolumeJob
    from pathray.run.fence import Fence

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(oct.__file__).parent / "configs"
COLUMNS = ("path", "status", "error", "bytes_before", "bytes", "syntax_before")
PART_ROWS = 32  # volumes whose work a kill may lose


@dataclass
class PrepareOctConfig:
    index: str = MISSING  # output of ray_jobs.index_oct
    output: str = MISSING  # a folder or URL for the volumes, below the same paths, and their manifest.tsv
    report: str = ""  # CSV with one row per volume; "" = OUTPUT/preparation.csv
    min_success_fraction: float = 1.0  # of the volumes
    volumes_per_task: int = placement(1)
    volume_timeout_s: float = placement(TIMEOUT_S)  # a volume that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_between(self, "", 0, 1, "min_success_fraction")
        check_at_least(self, "", 1, "volumes_per_task")
        if is_set(self.output) and holds_secret(self.output):
            raise UserError("the URL contains a login or a signature", key="output", found=public(self.output))
        if is_set(self.output) and not self.report:
            self.report = f"{self.output.rstrip('/')}/preparation.csv"


def main(loaded: Loaded[PrepareOctConfig]) -> Outputs | None:
    from oct.indexing.index_file import read_index

    config = with_absolute_paths(loaded.config, "index", "output", "report")
    index = read_index(config.index)
    log.info("%s", index)
    if loaded.dry_run:
        jobs = plan(config, index, open_ledger(config).read())
        return tell((check_files([job.source for job in jobs], config.index, "path"), "volumes"))
    with hold(config.output, trains=False) as fence:
        return finish(config, index, work(config, index, fence))


def open_ledger(config: PrepareOctConfig) -> Ledger:
    """What earlier starts wrote into the output."""
    from oct.transfer.ledger import Ledger
    from oct.transfer.prepare import LEDGER, SCHEMA

    return Ledger(f"{config.output.rstrip('/')}/{LEDGER}", SCHEMA, "path", PART_ROWS)


def plan(config: PrepareOctConfig, index: VolumeIndex, known: dict[str, Row]) -> list[VolumeJob]:
    """What there is to do. UserError for an output of another index."""
    from oct.transfer.prepare import plan_preparation

    jobs = plan_preparation(index, config.output, known)
    check_alone(config, index, known)
    return jobs


def work(config: PrepareOctConfig, index: VolumeIndex, fence: Fence) -> list[Row]:
    """Write what there is to do, then the report; a row per volume. `fence`: of the output."""
    from oct.transfer.prepare import FAILED

    rows: list[Row] = []
    ledger = open_ledger(config)
    known = ledger.read()
    jobs = plan(config, index, known)
    try:
        with ray_session(config.runtime, needed=bool(jobs)):
            rows += prepare(config, jobs, ledger, fence)
        through_outages(fence.check, "the output")
        ledger.compact((known | {row["path"]: row for row in rows if row["status"] != FAILED}).values())
    finally:
        if fence.is_held():
            report(config, index, rows)
    return rows


def check_alone(config: PrepareOctConfig, index: VolumeIndex, known: Mapping[str, Row]) -> None:
    """UserError if the output has volumes that this index does not list: its manifest would lose them."""
    listed = set(index.table["path"].to_pylist())
    if others := sorted(set(known) - listed):
        message, found = "the output has volumes of another index", f"{others[0]} and {len(others) - 1} more"
        raise UserError(message, file=config.output, key="output", found=found, expected="an output for each index")


def prepare(config: PrepareOctConfig, jobs: list[VolumeJob], ledger: Ledger, fence: Fence) -> Iterator[Row]:
    """Write the volumes on the running Ray if there is one; their rows in order, as they come. Superseded once another
    start has taken over the output."""
    from oct.transfer.prepare import lost_volume, prepare_volume

    over_ray = RayMap(lost_volume, chunk=config.volumes_per_task, timeout_s=config.volume_timeout_s)
    with Progress(len(jobs), "prepare", "volumes") as progress:
        for row in ledger.keep(fence.watch(over_ray(prepare_volume, jobs))):
            progress.update()
            yield row


def report(config: PrepareOctConfig, index: VolumeIndex, rows: list[Row]) -> None:
    """Write report and summary.md, and log the closing line."""
    from oct.transfer.prepare import FAILED, closing_line
    from pathray.reports.summary import Summary, counts, write_summary
    from pathray.reports.units import write_report

    write_report(config.report, COLUMNS, rows)
    facts: dict[str, object] = {"index": config.index, "volumes": index.accepted.num_rows}
    facts |= {f"volumes {status}": n for status, n in counts(row["status"] for row in rows).items()}
    facts |= {f"excluded: {reason}": count for reason, count in sorted(index.reasons.items())}
    for name, column in (("bytes before", "bytes_before"), ("bytes", "bytes")):
        facts[name] = sum(row[column] or 0 for row in rows)
    failed = [(row["path"], row["error"]) for row in rows if row["status"] == FAILED]
    files = {"report with a row per volume": config.report}
    write_summary(config.output, Summary("Prepared volumes", facts, failed=failed, files=files))
    log.info("%s; report: %s", closing_line(index, rows), config.report)


def finish(config: PrepareOctConfig, index: VolumeIndex, rows: list[Row]) -> Outputs:
    """Write the manifest. UserError if too many volumes failed; the manifest then has the others."""
    from oct.transfer.prepare import write_manifest
    from pathray.reports.units import check_success

    manifest = f"{config.output.rstrip('/')}/manifest.tsv"
    write_manifest(manifest, index, rows)
    check_success(rows, "path", "volumes", config.min_success_fraction, config.report)
    return Outputs({"volumes": config.output, "manifest": manifest, "report": config.report})


if __name__ == "__main__":
    job(main, PrepareOctConfig, CONFIGS_DIR)
