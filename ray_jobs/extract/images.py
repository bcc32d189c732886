"""Extraction from image files: extracts parts on actors and merges them into one table per encoder.

Not here: the job (ray_jobs.extract_features).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from pathray.features.images import COLUMNS as RESERVED
from pathray.features.images import ImageJob, ImageOutcome, ImageSettings, extract_images, part_fingerprint
from pathray.features.inputs import Listed, images_in, images_of
from pathray.features.publish import sweep
from pathray.features.tables import merge_tables, read_meta
from pathray.reports.progress import Progress
from pathray.reports.summary import Summary, write_summary
from pathray.reports.units import check_success, write_report
from pathray.store.storage import Storage
from ray_jobs.extract.actors import ABSENT, DIED, map_in_threads, over_actors, state_of
from ray_jobs.extract.config import SLIDES_ONLY, VOLUMES_ONLY, check_unused, told_pooling
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec
    from ray_jobs.extract.config import ExtractConfig

log = logging.getLogger(__name__)
TABLE, PARTS = "features.parquet", "_parts"
LISTS = (".csv", ".tsv", ".tab")
COLUMNS = ("path", "status", "error")
Errors = dict[int, str]  # by the number of the image in the list


@dataclass
class Images:
    """The work to do: the list of images in parts, and jobs for the parts that are missing or out of date."""

    config: ExtractConfig
    specs: Mapping[str, EncoderSpec]
    settings: ImageSettings
    whole: ImageJob
    finished: dict[str, Errors] = field(default_factory=dict)  # encoders whose table is up to date
    jobs: list[tuple[int, ImageJob]] = field(default_factory=list)  # number of the part, job

    def __str__(self) -> str:
        to_do = sum(len(job.names) for _, job in self.jobs)
        return (
            f"{len(self.whole.names)} images, {len(self.whole.names) - to_do} already finished, for "
            f"{', '.join(self.specs)}; {told_pooling(self.specs, self.settings.pooling)} as {self.settings.dtype}"
        )

    @property
    def parts(self) -> range:
        return range(0, len(self.whole.names), self.config.images_per_part)

    def part(self, number: int) -> ImageJob:
        cut = slice(self.parts[number], self.parts[number] + self.config.images_per_part)
        metadata = {name: values[cut] for name, values in self.whole.metadata.items()}
        return ImageJob(self.whole.names[cut], self.whole.paths[cut], self.whole.states[cut], metadata)

    def path(self, name: str, part: int | None = None) -> str:
        """The path of an encoder's table, or of a part of it."""
        store = Storage.of(self.config.output).at(name)
        return store.join(TABLE) if part is None else store.join(PARTS, f"part-{part:06d}.parquet")

    def check(self) -> None:
        """The checks of a dry run: the images exist."""
        pairs = list(zip(self.whole.names, self.whole.states, strict=True))
        lost = [{"path": name, "status": "failed", "error": "no such file"} for name, state in pairs if state == ABSENT]
        rows = [*lost, *({"path": name, "status": "ok"} for name, state in pairs if state != ABSENT)]
        check_success(rows, "path", "images", self.config.min_success_fraction, self.config.images)
        tell((len(rows) - len(lost), "images"))

    def run(self) -> None:
        """Run the jobs on Ray, merge the tables, write the report, and raise if too few images are ok."""
        for name in self.specs:
            sweep(Storage.of(self.config.output).join(name))
        jobs, lost = [job for _, job in self.jobs], Errors()
        with Progress(sum(len(job.names) for job in jobs), "extract", "images") as progress:
            outcomes = over_actors(self.config, jobs, extract_images, _failed_outcome, self.settings, self.specs)
            for number, outcome in outcomes:
                if outcome is None or not outcome.written:
                    lost[self.jobs[number][0]] = DIED if outcome is None else outcome.errors[0]
                progress.update(len(jobs[number].names))
        errors = Errors()
        for name in self.specs:
            errors |= self.finished[name] if name in self.finished else self._merge_parts(name, lost)
        self._report(errors)

    def _merge_parts(self, name: str, lost: Errors) -> Errors:
        """Merge an encoder's parts into its table and remove them if all exist; returns the images' errors."""
        present, errors = list[str](), Errors()
        for number, first in enumerate(self.parts):
            part, path = self.part(number), self.path(name, number)
            meta = read_meta(path)
            if meta is None or meta["fingerprint"] != part_fingerprint(part, self.specs[name], self.settings):
                errors |= {first + i: lost.get(number, DIED) for i in range(len(part.names))}
            else:
                present.append(path)
                errors |= {first + i: error for i, error in meta["failed"]}
        if not present:
            return errors
        complete = len(present) == len(self.parts)
        meta = {
            "fingerprint": part_fingerprint(self.whole, self.specs[name], self.settings) if complete else "",
            "failed": [[i, errors[i]] for i in sorted(errors)],
            "provenance": {
                "encoder": self.specs[name].identity(),
                "encoder_name": name,
                "settings": asdict(self.settings) | {"pooling": self.specs[name].pooling(self.settings.pooling)},
            },
        }
        rows = merge_tables(present, self.path(name), meta)
        log.info("%s: %d rows", self.path(name), rows)
        if complete:
            Storage.of(self.config.output).at(name).remove(PARTS)
        return errors

    def _report(self, errors: Errors) -> None:
        rows = [
            {"path": path, "status": "failed" if i in errors else "ok", "error": errors.get(i, "")}
            for i, path in enumerate(self.whole.names)
        ]
        write_report(self.config.report, COLUMNS, rows)
        write_summary(self.config.output, self._summary(errors))
        log.info("%d of %d images are ok; report: %s", len(rows) - len(errors), len(rows), self.config.report)
        check_success(rows, "path", "images", self.config.min_success_fraction, self.config.report)

    def _summary(self, errors: Errors) -> Summary:
        names, to_do = self.whole.names, sum(len(job.names) for _, job in self.jobs)
        facts = {"images": len(names), "finished before": len(names) - to_do, "failed": len(errors)}
        return Summary(
            "Features of images",
            {"source": self.config.images, **facts, "encoders": ", ".join(self.specs)},
            {name: getattr(self.settings, name) for name in ("resize", "pooling", "precision", "dtype")},
            failed=[(names[i], error) for i, error in sorted(errors.items())],
            files={"report with a row per image": self.config.report}
            | {f"features of {name}": self.path(name) for name in self.specs},
        )


def plan(config: ExtractConfig, specs: Mapping[str, EncoderSpec]) -> Images:
    """Check every image file and what is already finished. Raises UserError for problems of the config."""
    check_unused(
        config, SLIDES_ONLY, "applies to slides only; images are used as they are, or resized with resize=true"
    )
    check_unused(config, VOLUMES_ONLY, "applies to volumes only")
    settings = ImageSettings(
        resize=config.resize,
        pooling=config.pooling,
        precision=config.precision,
        dtype=config.dtype,
        batch_size=config.batch_size,
        read_threads=config.read_threads,
        read_timeout_s=config.read_timeout_s,
    )
    listed = _list_images(config)
    states = tuple(map_in_threads(state_of, listed.paths))
    work = Images(config, specs, settings, ImageJob(listed.names, listed.paths, states, listed.metadata))
    if not config.overwrite:
        for name, spec in specs.items():
            meta = read_meta(work.path(name))
            if meta is not None and meta["fingerprint"] == part_fingerprint(work.whole, spec, settings):
                work.finished[name] = {i: error for i, error in meta["failed"]}
    for number in range(len(work.parts)):
        job = _to_do(work, number)
        if job.tables:
            work.jobs.append((number, job))
    return work


def _to_do(work: Images, number: int) -> ImageJob:
    part, tables = work.part(number), list[tuple[str, str]]()
    for name, spec in work.specs.items():
        if name in work.finished:
            continue
        path = work.path(name, number)
        meta = None if work.config.overwrite else read_meta(path)
        if meta is None or meta["fingerprint"] != part_fingerprint(part, spec, work.settings):
            tables.append((name, path))
    return replace(part, tables=tuple(tables))


def _list_images(config: ExtractConfig) -> Listed:
    if config.images.lower().endswith(LISTS):
        return images_of(config.images, root=config.images_root, reserved=RESERVED)
    return images_in(config.images)


def _failed_outcome(job: ImageJob, error: str) -> ImageOutcome:
    return ImageOutcome({i: error for i in range(len(job.names))}, written=False)
