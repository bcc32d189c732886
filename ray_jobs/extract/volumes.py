"""Extraction from OCT volumes: decides which volumes of an index to do, reports the results, writes one table of all.

Not here: the job (ray_jobs.extract_features), the bag of one volume (oct.encoding.extraction).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from oct.encoding.encoder import Singles, encoder_of
from oct.encoding.extraction import (
    VolumeJob,
    VolumeOutcome,
    VolumeSettings,
    bag_fingerprint,
    extract_volume,
    read_pooled,
)
from oct.indexing.index_file import VolumeIndex, read_index
from oct.plan import manifest_spacing
from pathray.errors import UserError
from pathray.features.bags import read_summary
from pathray.features.identity import fingerprint
from pathray.features.publish import sweep
from pathray.features.tables import FEATURES, feature_column, read_meta, write_table
from pathray.reports.progress import Progress
from pathray.reports.summary import Summary, counts, write_summary
from pathray.reports.units import check_success, describe, write_report
from pathray.store.storage import Storage, file_state
from ray_jobs.extract.actors import DIED, Row, map_in_threads, over_actors
from ray_jobs.extract.config import SLIDES_ONLY, check_unused, told_pooling
from ray_jobs.shell.dry_run import check_files, tell

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec
    from ray_jobs.extract.config import ExtractConfig

log = logging.getLogger(__name__)
TABLE = "features.parquet"
ABOUT = {"path": "path", "person": "person", "eye": "laterality", "device": "device", "region": "region"}
SPACING = [f"{what}_{axis}{unit}" for what, unit in (("spacing", "_mm"), ("source", "")) for axis in "zyx"]
COLUMNS = ("volume_id", *ABOUT, "status", "error", "frames", "rows", "columns", *SPACING, "seconds")
STATES = ("ok", "skipped", "failed")


@dataclass
class Volumes:
    """The work to do: a report row for every volume, in the index's order, and jobs for those that need one."""

    config: ExtractConfig
    specs: Mapping[str, EncoderSpec]
    settings: VolumeSettings
    index: VolumeIndex
    volumes: list[VolumeJob] = field(default_factory=list)  # by row
    rows: list[Row] = field(default_factory=list)
    jobs: list[tuple[int, VolumeJob]] = field(default_factory=list)  # row number and job
    pooled: dict[tuple[int, str], Singles] = field(default_factory=dict)  # by row number and encoder, of this start

    def __str__(self) -> str:
        done, of = sum(row["status"] == "skipped" for row in self.rows), self.settings
        what = "the grid of tokens" if of.tokens else told_pooling(self.specs, of.pooling)
        return f"{self.index}; {done} already finished; {what} for {', '.join(self.specs)} as {of.dtype}"

    def check(self) -> None:
        """The checks of a dry run: the files exist."""
        failed = [row for row in self.rows if row["status"] == "failed"]
        check_success(self.rows, "path", "volumes", self.config.min_success_fraction, self.config.volumes)
        there = check_files([job.url for _, job in self.jobs], self.config.volumes, "volumes")
        tell((there, "volumes to do"), *([(len(failed), "volumes that will fail")] if failed else []))

    def run(self) -> None:
        """Run the jobs on Ray, write tables and report, and raise if too few volumes are ok."""
        for name in self.specs:
            sweep(Storage.of(self.config.output).join(name))
        jobs = [job for _, job in self.jobs]
        outcomes = over_actors(
            self.config, jobs, extract_volume, _failed_outcome, self.settings, self.specs, encoder_of
        )
        try:
            with Progress(len(jobs), "extract", "volumes") as progress:
                for number, outcome in outcomes:
                    self._take(self.jobs[number][0], outcome or VolumeOutcome("failed", DIED))
                    progress.update()
            for name in self.specs:
                self._write_table(name)
        finally:
            write_report(self.config.report, COLUMNS, self.rows, key="path")
            write_summary(self.config.output, self._summary())
        told = ", ".join(f"{n} {status}" for status, n in counts(row["status"] for row in self.rows).items())
        log.info("%s; report: %s", told, self.config.report)
        check_success(self.rows, "path", "volumes", self.config.min_success_fraction, self.config.report)

    def table(self, name: str) -> str:
        return Storage.of(self.config.output).join(name, TABLE)

    def _take(self, number: int, outcome: VolumeOutcome) -> None:
        self.rows[number] |= _columns(outcome)
        self.pooled |= {(number, name): values for name, values in outcome.pooled.items()}

    def _write_table(self, name: str) -> None:
        """The pooled features of all volumes that have a bag, unless the table has them already."""
        spec = self.specs[name]
        done = [i for i, row in enumerate(self.rows) if row["status"] in ("ok", "skipped")]
        prints = [bag_fingerprint(self.volumes[i], spec, self.settings) for i in done]
        failed = [[row["path"], row["error"]] for row in self.rows if row["status"] == "failed"]
        digest = fingerprint({"bags": prints, "failed": [path for path, _ in failed]})
        before = read_meta(self.table(name))
        if not done or (before is not None and before["fingerprint"] == digest):
            return
        found = map_in_threads(lambda i: self._pooled_of(i, name), done)
        columns: dict[str, Any] = {"volume_id": [self.volumes[i].volume_id for i in done]}
        for key in found[0][1]:
            columns[key] = [facts[key] for _, facts in found]
        columns[FEATURES] = feature_column(np.stack([pooled for pooled, _ in found]).astype(self.settings.dtype))
        provenance = {
            "encoder": spec.identity(),
            "encoder_name": name,
            "settings": asdict(self.settings) | {"pooling": spec.pooling(self.settings.pooling)},
        }
        meta = {"fingerprint": digest, "failed": failed, "provenance": provenance}
        write_table(self.table(name), pa.table(columns), meta)
        log.info("%s: %d rows", self.table(name), len(done))

    def _pooled_of(self, number: int, name: str) -> tuple[Singles, Mapping[str, Any]]:
        if (number, name) in self.pooled:
            return self.pooled[number, name], self.rows[number]["facts"]
        return read_pooled(_bag_path(self.config, name, self.volumes[number]))

    def _summary(self) -> Summary:
        rows = {s: [(row["path"], row["error"]) for row in self.rows if row["status"] == s] for s in STATES}
        names = ("pooling", "precision", "dtype", "tokens", "token_pool")
        return Summary(
            "Features of volumes",
            {
                "source": self.config.volumes,
                "volumes": len(self.rows),
                **counts(row["status"] for row in self.rows),
                **{f"excluded by the index: {why}": n for why, n in sorted(self.index.reasons.items())},
                "encoders": ", ".join(self.specs),
            },
            {name: getattr(self.settings, name) for name in names},
            failed=rows["failed"],
            skipped=[(path, why or "already extracted, unchanged") for path, why in rows["skipped"]],
            notes=[unit for unit in rows["ok"] if unit[1]],
            files={"report with a row per volume": self.config.report}
            | {f"features of {name}": self.table(name) for name in self.specs},
        )


def plan(config: ExtractConfig, specs: Mapping[str, EncoderSpec]) -> Volumes:
    """Check every volume of the index and what is already finished. Raises UserError for problems of the config."""
    check_unused(
        config, (*SLIDES_ONLY, "resize", "images_root"), "does not apply to volumes: grids are the encoders' own"
    )
    if not config.tokens:
        check_unused(config, ("token_pool",), "needs tokens=true: without it no tokens are kept")
    z, y, x = config.token_pool
    settings = VolumeSettings(
        pooling=config.pooling,
        precision=config.precision,
        dtype=config.dtype,
        tokens=config.tokens,
        token_pool=(z, y, x),
        batch_size=1,
        read_timeout_s=config.read_timeout_s,
    )
    index = read_index(config.volumes)
    work, root = Volumes(config, specs, settings, index), config.volumes_root or index.root
    listed = [_job_of(row, root) for row in index.accepted.to_pylist()]
    if not listed:
        raise UserError("the index has no volumes", file=config.volumes, key="volumes", found=str(index))
    ids = {job.volume_id: job.about["path"] for job in listed}
    for job, (row, todo) in zip(listed, map_in_threads(lambda job: _check(work, job, ids), listed), strict=True):
        if todo is not None:
            work.jobs.append((len(work.rows), todo))
        work.rows.append(row)
        work.volumes.append(todo or replace(job, state=row.pop("state", "")))
    return work


def _job_of(row: Mapping[str, Any], root: str) -> VolumeJob:
    about = {name: str(row[column] or "") for name, column in ABOUT.items()}
    path = about["path"]
    return VolumeJob(
        path.removesuffix(".dcm").replace("/", "__"), f"{root.rstrip('/')}/{path}", about, manifest_spacing(row)
    )


def _check(work: Volumes, job: VolumeJob, ids: Mapping[str, str]) -> tuple[Row, VolumeJob | None]:
    """The report row of a volume so far, and its job if there is something to do."""
    row: Row = {"volume_id": job.volume_id, **job.about}
    try:
        if ids[job.volume_id] != job.about["path"]:
            raise UserError(f"another volume has the same id: {ids[job.volume_id]}")
        job = replace(job, state=file_state(job.url))
    except Exception as e:  # any error of a file system is a failure of this volume only
        return row | _columns(VolumeOutcome("failed", describe(e))), None
    bags = []
    for name, spec in work.specs.items():
        path = _bag_path(work.config, name, job)
        found = None if work.config.overwrite else read_summary(path)
        if found is None or found.fingerprint != bag_fingerprint(job, spec, work.settings):
            bags.append((name, path))
    if not bags:
        return row | _columns(VolumeOutcome("skipped")) | {"state": job.state}, None
    return row | _columns(VolumeOutcome("not done")), replace(job, bags=tuple(bags))


def _bag_path(config: ExtractConfig, name: str, job: VolumeJob) -> str:
    return Storage.of(config.output).join(name, f"{job.volume_id}.h5")


def _failed_outcome(job: VolumeJob, error: str) -> VolumeOutcome:
    return VolumeOutcome("failed", error)


def _columns(outcome: VolumeOutcome) -> Row:
    own = {"status": outcome.status, "error": outcome.error, "seconds": round(outcome.seconds, 2)}
    return {**outcome.facts, **own, "facts": outcome.facts}
