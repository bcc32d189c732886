"""ZIPs of DICOM files on a bucket or disk → one file per volume, structural_oct/DEVICE/PERSON/FILE.dcm.

    python -m ray_jobs.expand_oct archives=gs://bucket/zips output=gs://bucket/oct
    python -m ray_jobs.expand_oct archives=gs://bucket/zips output=gs://bucket/oct validate_only=true

Members stream from storage to storage, in parallel; nothing is unpacked to a local disk. Each is checked by size and
CRC before its file appears. A later start writes only what is not there; one start at a time writes to an output.
validate_only reads every file that the archives should have become, and writes none. The exit code is 2 if fewer than
`min_success_fraction` of the members could be written; the report names each with its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from pathray.urls import holds_secret, is_url, public
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session
from ray_jobs.train.training_jobs import with_absolute_paths

if TYPE_CHECKING:
    from oct.transfer.expand import Expansion, MemberJob
    from oct.transfer.ledger import Ledger, Row
    from pathray.run.fence import Fence

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(oct.__file__).parent / "configs"


@dataclass
class ExpandOctConfig:
    archives: str = MISSING  # a ZIP, or a folder or URL with ZIPs at any depth
    output: str = MISSING  # a folder or URL; the files go to OUTPUT/structural_oct/DEVICE/PERSON
    report: str = ""  # CSV with one row per member; "" = OUTPUT/expansion.csv, or OUTPUT/validation.csv
    validate_only: bool = False  # read what is there and compare size and CRC; writes only the report
    min_success_fraction: float = 1.0  # of the members
    members_per_task: int = placement(4)
    member_timeout_s: float = placement(TIMEOUT_S)  # a member that takes longer fails; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_between(self, "", 0, 1, "min_success_fraction")
        check_at_least(self, "", 1, "members_per_task")
        for key in ("archives", "output"):
            if is_set(value := getattr(self, key)) and holds_secret(value):
                message, expected = (
                    "the URL contains a login or a signature",
                    "gs://…, and credentials in the environment",
                )
                raise UserError(message, key=key, found=public(value), expected=expected)
        if is_set(self.output) and not self.report:
            self.report = f"{self.output.rstrip('/')}/{'validation' if self.validate_only else 'expansion'}.csv"


def main(loaded: Loaded[ExpandOctConfig]) -> Outputs | None:
    from oct.transfer.archive import list_archives

    config = with_absolute_paths(loaded.config, "archives", "output", "report")
    archives = list_archives(config.archives)
    if loaded.dry_run:
        expansion = plan(config, archives, open_ledger(config).read())
        return tell((len(archives), "archives"), (len(expansion.jobs), "members"))
    if config.validate_only:  # writes nothing but its report
        rows = work(config, archives, None)
    else:
        with hold(config.output, trains=False) as fence:
            rows = work(config, archives, fence)
    check(config, rows)
    return Outputs({"volumes": config.output, "report": config.report})


def work(config: ExpandOctConfig, archives: list[str], fence: Fence | None) -> list[Row]:
    """Write (or validate) what there is to do, then the report; a row per member. `fence`: of the output."""
    from oct.transfer.expand import KEPT, WRITTEN

    ledger = open_ledger(config)
    known = ledger.read()
    expansion = plan(config, archives, known)
    log.info("%d members to write from %d archives", len(expansion.jobs), len(archives))
    if fence is not None and not is_url(config.output):
        from pathray.data.leftovers import sweep_leftovers

        sweep_leftovers(f"{config.output.rstrip('/')}/structural_oct")
    rows = list(expansion.rows)
    try:
        with ray_session(config.runtime, needed=bool(expansion.jobs)):
            rows += expand(config, expansion.jobs, ledger, fence)
        if fence is not None:
            through_outages(fence.check, "the output")
            ledger.compact((known | {row["path"]: row for row in rows if row["status"] in (WRITTEN, KEPT)}).values())
    finally:
        if fence is None or fence.is_held():
            report(config, rows, len(archives))
    return rows


def open_ledger(config: ExpandOctConfig) -> Ledger:
    """What earlier starts wrote into the output."""
    from oct.transfer.expand import LEDGER, SCHEMA
    from oct.transfer.ledger import Ledger

    return Ledger(f"{config.output.rstrip('/')}/{LEDGER}", SCHEMA, "path")


def plan(config: ExpandOctConfig, archives: list[str], known: dict[str, Row]) -> Expansion:
    """What there is to do; directories are read in threads."""
    from oct.transfer.expand import plan_expansion
    from ray_jobs.extract.actors import map_in_threads

    return plan_expansion(archives, config.output, known, map_in_threads)


def expand(config: ExpandOctConfig, jobs: list[MemberJob], ledger: Ledger, fence: Fence | None = None) -> Iterator[Row]:
    """Write the members on the running Ray if there is one, or without a `fence` validate them; their rows in order, as
    they come. Superseded once another start has taken over the output."""
    from oct.transfer.expand import expand_member, lost_member, validate_member

    over_ray = RayMap(lost_member, chunk=config.members_per_task, timeout_s=config.member_timeout_s)
    rows = over_ray(expand_member if fence is not None else validate_member, jobs)
    with Progress(len(jobs), "validate" if config.validate_only else "expand", "members", parts="bytes") as progress:
        for row in rows if fence is None else ledger.keep(fence.watch(rows)):
            progress.update(1, row["bytes"])
            yield row


def report(config: ExpandOctConfig, rows: list[Row], archives: int) -> None:
    """Write report and summary.md, and log the closing line."""
    from oct.transfer.expand_report import COLUMNS, closing_line, report_rows, summary_of
    from pathray.reports.summary import write_summary
    from pathray.reports.units import write_report

    write_report(config.report, COLUMNS, report_rows(rows))
    write_summary(config.output, summary_of(rows, config.archives, archives, config.report, config.validate_only))
    log.info("%s; report: %s", closing_line(archives, rows, config.validate_only), config.report)


def check(config: ExpandOctConfig, rows: list[Row]) -> None:
    """UserError if too many members failed, or an archive could not be read."""
    from pathray.reports.units import check_success

    named = [row | {"name": f"{row['archive']}!{row['member']}".rstrip("!")} for row in rows]
    check_success(named, "name", "members", config.min_success_fraction, config.report)


if __name__ == "__main__":
    job(main, ExpandOctConfig, CONFIGS_DIR)
