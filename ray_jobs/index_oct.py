"""OCT manifest (or a folder of DICOM files) → index of volumes (parquet), figures per device, and a split by person.

    python -m ray_jobs.index_oct manifest=oct/manifest.tsv root=oct output=indexes/oct.parquet
    python -m ray_jobs.index_oct root=gs://bucket/oct output=indexes/oct.parquet split=splits/oct.csv

Headers are read in parallel. Files that are no volumes to train on (single frames, circular scans, duplicates, missing
and unreadable ones) stay in the index with the reason. A later start reads only what is new, changed or could not be
read. The exit code is 2 if more than `max_unreadable_fraction` of the files are missing or unreadable; the index is
still written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import oct
from pathray.config.checks import check_at_least, check_between
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import MissingFile, UserError
from pathray.reports.progress import Progress
from ray_jobs.extract.ordered_map import TIMEOUT_S, RayMap
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

if TYPE_CHECKING:
    from oct.indexing.index import Row
    from oct.indexing.index_file import VolumeIndex
    from oct.indexing.manifest import Manifest

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(oct.__file__).parent / "configs"
SHOWN = 10


@dataclass
class IndexOctConfig:
    manifest: str = ""  # manifest.tsv of AI-READI; "" = all .dcm files below root, PERSON/FILE.dcm
    root: str = ""  # folder or URL where the manifest's paths begin; "" = its own folder, or the one above
    gcs_root: str = ""  # another name of root
    output: str = MISSING  # the index, a parquet file
    devices: list[str] = field(default_factory=list)  # only these, such as [topcon_triton]; [] = all
    max_unreadable_fraction: float = 0.05  # of the files: missing or unreadable
    split: str = ""  # a split by person to write, a CSV; "" = none, or OUTPUT_split.csv with participants
    participants: str = ""  # participants.tsv, whose recommended_split is then the split
    seed: int = 42  # of a split without participants
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # of its volumes: train, val, test
    grid_shape: list[int] = field(default_factory=lambda: [64, 384, 384])  # z, y, x: of the share that is image
    grid_spacing_mm: list[float] = field(default_factory=lambda: [0.05, 0.02, 0.02])
    files_per_task: int = placement(8)
    file_timeout_s: float = placement(TIMEOUT_S)  # a file that takes longer is left out; 0: no limit
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.root and self.gcs_root and self.root != self.gcs_root:
            raise UserError("two names of one key", key="gcs_root", found=self.gcs_root, expected=f"root={self.root}")
        self.root = self.gcs_root = self.root or self.gcs_root
        if is_set(self.output) and not (self.manifest or self.root):
            raise UserError("`manifest` or `root` is required", key="manifest", expected="manifest.tsv, or a folder")
        check_between(self, "", 0, 1, "max_unreadable_fraction")
        check_at_least(self, "", 1, "files_per_task")
        for key in ("fractions", "grid_shape", "grid_spacing_mm"):
            if len(values := getattr(self, key)) != 3 or min(values) < 0 or (key != "fractions" and min(values) == 0):
                raise UserError("three values are required", key=key, found=values, expected="three numbers > 0")
        if self.participants and not self.split and is_set(self.output):
            self.split = self.output.removesuffix(".parquet") + "_split.csv"


def main(loaded: Loaded[IndexOctConfig]) -> Outputs | None:
    from oct.indexing.index_report import check_readable
    from oct.indexing.manifest import of_devices, read_folder, read_manifest

    config = loaded.config
    whole = read_manifest(config.manifest, config.root) if config.manifest else read_folder(config.root)
    manifest = of_devices(whole, config.devices)
    previous = previous_rows(config, manifest)
    log.info("%d files in %s, %d already indexed", len(manifest.rows), whole.path, len(previous))
    if loaded.dry_run:
        return tell((count_files(manifest, config), "files"))
    with ray_session(config.runtime):
        index = build(config, manifest, previous)
    report(config, index, whole.path)
    outputs = {"index": config.output}
    if config.split:
        write_person_split(config, index)
        outputs["split"] = config.split
    check_readable(index, config.max_unreadable_fraction)
    return Outputs(outputs)


def build(config: IndexOctConfig, manifest: Manifest, previous: list[Row]) -> VolumeIndex:
    """Write and return the index of `manifest`, on the running Ray if there is one."""
    from oct.indexing.index import index_volumes, lost_row, mark_duplicates
    from oct.indexing.index_file import make_index, write_index
    from oct.indexing.index_parts import IndexParts

    over_ray = RayMap(lost_row, chunk=config.files_per_task, timeout_s=config.file_timeout_s)
    parts, rows = IndexParts(config.output, manifest.root), []
    with Progress(len(manifest.rows), "index", "files") as progress:
        for row in parts.keep(index_volumes(manifest, previous=previous, map=over_ray), previous):
            rows.append(row)
            progress.update()
    index = make_index(config.output, manifest.root, mark_duplicates(rows))
    write_index(index)
    parts.remove()
    return index


def previous_rows(config: IndexOctConfig, manifest: Manifest) -> list[Row]:
    """The rows of an earlier index at the output and of a killed job's parts, of the same root. UserError if another
    file is there."""
    from oct.indexing.index_file import read_index
    from oct.indexing.index_parts import IndexParts

    parts = IndexParts(config.output, manifest.root).rows()
    try:
        index = read_index(config.output)
    except MissingFile:
        return parts
    rows: list[Row] = index.table.to_pylist() if index.root == manifest.root else []
    return rows + parts


def count_files(manifest: Manifest, config: IndexOctConfig) -> int:
    """The number of files that are there. UserError if more than are allowed are missing; others are logged."""
    from ray_jobs.extract.actors import ABSENT, map_in_threads, state_of

    states = map_in_threads(state_of, [f"{manifest.root}/{row.path}" for row in manifest.rows])
    lost = [row for row, state in zip(manifest.rows, states, strict=True) if state == ABSENT]
    for row in lost[:SHOWN]:
        log.warning("would be missing: row %d, %s", row.line, row.path)
    if len(lost) > config.max_unreadable_fraction * len(states):
        found, expected = f"{len(lost)} of {len(states)}, such as {lost[0].path}", f"files below {manifest.root}"
        raise MissingFile("too many files are missing", file=manifest.path, row=lost[0].line, key="filepath",
                          found=found, expected=expected)  # fmt: skip
    return len(states) - len(lost)


def report(config: IndexOctConfig, index: VolumeIndex, source: str) -> None:
    """Log counts by reason and the figures per device, and write them into summary.md next to the index."""
    from oct.indexing.index_report import lines_of, summary_of
    from oct.volume import Grid
    from pathray.reports.summary import write_summary

    z, y, x = config.grid_shape
    dz, dy, dx = config.grid_spacing_mm
    grid = Grid((z, y, x), (dz, dy, dx))
    for line in lines_of(index, grid):
        log.info("%s", line)
    write_summary(config.output.rpartition("/")[0] or ".", summary_of(index, source, grid))


def write_person_split(config: IndexOctConfig, index: VolumeIndex) -> None:
    """Write the split of all accepted volumes."""
    from oct.indexing.file_lists import list_files
    from oct.indexing.person_splits import recommended_split, stratified_split
    from pathray.data.split_files import write_split
    from pathray.data.splits import SPLITS

    files = list_files(index)
    train, val, test = config.fractions
    if config.participants:
        split = recommended_split(files, config.participants)
    else:
        split = stratified_split(files, config.seed, train=train, val=val, test=test)
    write_split(config.split, files, split)
    rows = {part: split.rows(part) for part in SPLITS}
    counts = (f"{part} {len(own)} of {len(set(files.groups[own].tolist()))} persons" for part, own in rows.items())
    log.info("%s: %s", config.split, ", ".join(counts))


if __name__ == "__main__":
    job(main, IndexOctConfig, CONFIGS_DIR)
