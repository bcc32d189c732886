"""The whole pretraining job on tiny slides of a real format: what goes in, how it is run, what it left behind.

Not here: the slides themselves (tests.builders.slides) and what a run should look like (the tests).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathray.store.storage import Storage
from tests.builders.cohort import write_manifest
from tests.builders.runs.weights import newest_weights
from tests.builders.slides import write_slide

STEPS, GLOBAL_BATCH = 8, 4
WITHOUT_RAY = "scaling.workers=0"
BUDGET = STEPS * GLOBAL_BATCH
TAG = "ijepath"
# 96 px contexts at 1.0 mpp (6 x 6 tokens), two targets of 24 px in it, read at 0.5 mpp (48 px, 3 x 3 tokens).
KEYS = (
    "data.context_fov_um=96", "data.target_fov_um=24", "data.targets_per_context=2", "data.target_margin_um=4",
    "data.anchor_stride_fraction=0.5", "mask.min_keep=4",
    "data.threads=1", "data.ahead=1", "data.ahead_mb=16", "data.tile_cache_mb=8",
    "model.name=vit_tiny", "model.pred_depth=1", "model.pred_emb_dim=96", "model.use_bfloat16=false",
    f"optimization.global_batch={GLOBAL_BATCH}", f"optimization.total_images_budget={BUDGET}",
    "optimization.lr=1e-3", "training.log_every=4", f"training.save_every={BUDGET // 2}", "checkpoint.latest_every=8",
    "checkpoint.keep_last_n=1", "logging.mlflow=false",
    "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5", "runtime.worker_logs=false",
)  # fmt: skip


def write_cohort(folder: Path, slides: int = 3, width: int = 896, height: int = 768, tile: int = 128) -> str:
    """`slides` pyramidal JPEG slides at 0.5 mpp of two organs, without masks; the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(slides):
        name = f"slide{i}.tiff"
        write_slide(folder / name, width=width, height=height, tile=tile, downsamples=(1, 2), seed=i)
        rows.append({"slide_id": f"s{i}", "wsi_path": name, "organ": ("lung", "skin")[i % 2]})
    return write_manifest(folder / "slides.csv", rows)


def command(output: Path | str, manifest: Path | str | None, *argv: str) -> list[str]:
    """The job's arguments: the tiny run, and `argv` on top."""
    inputs = [f"data.slide_manifest_csv={manifest}"] if manifest else []
    return [*KEYS, *inputs, f"output={output}", *argv]


def pretrain(output: Path | str, manifest: Path | str | None, *argv: str) -> int:
    """The job in this process, through the Ray that is running unless `argv` has WITHOUT_RAY; its exit code."""
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ray_jobs import pretrain_ijepath as job
    from ray_jobs.shell.cli import run_job

    return run_job(job.main, job.PretrainConfig, command(output, manifest, *argv), CONFIGS_DIR, GROUPS)


def index_and_catalog(folder: Path, manifest: str, *argv: str) -> str:
    """The slide index and the anchor catalog of the tiny run, made in this process; the catalog's path.

    A run that is given a catalog does not look at the slides before it reads them, so they can be damaged meanwhile.
    """
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ijepath.indexing.anchors import anchors_of
    from ijepath.indexing.catalog_writer import write_catalog
    from ijepath.indexing.index import SlideIndex, index_slides, write_index
    from ijepath.indexing.manifest import read_manifest
    from pathray.config.load import load_config
    from ray_jobs.pretrain_ijepath import PretrainConfig
    from ray_jobs.train.ijepath_inputs import profile_of

    config = load_config(PretrainConfig, [*KEYS, *argv], configs_dir=CONFIGS_DIR, groups=GROUPS).config
    rows = read_manifest(manifest)
    index = SlideIndex(tuple(index_slides(rows)), rows.metadata_columns)
    assert not index.failed_rows, index.failed_rows
    slides, catalog = str(folder / "slide_metadata.parquet"), str(folder / "anchor_catalog_manifest.json")
    write_index(slides, index)
    profile = profile_of(config)
    found = anchors_of(index.rows, profile)
    write_catalog(catalog, profile, found, slide_index=slides, metadata_columns=rows.metadata_columns)
    return catalog


@dataclass(frozen=True)
class Run:
    """A run that was trained undisturbed: its folder, its manifest, and what the job printed."""

    folder: Path
    manifest: str
    code: int
    printed: str


@functools.cache
def undisturbed(base: Path) -> Run:
    """The tiny run on its own cohort under `base`, trained once per session without Ray: what others must equal."""
    manifest, folder, printed = write_cohort(base / "cohort"), base / "undisturbed", io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pretrain(folder, manifest, WITHOUT_RAY)
    return Run(folder, manifest, code, printed.getvalue())


def checkpoints(run: Path) -> dict[str, int]:
    """Folder name → images seen of every committed checkpoint."""
    from pathray.store.committed import list_committed

    return {Path(c.path).name: c.meta["images_seen"] for c in list_committed(str(run / "checkpoints"))}


def weights(run: Path | str) -> tuple[int, str]:
    """Images seen by the newest checkpoint, and the digest of everything that training changes."""
    return newest_weights(run, TAG)


def metrics(run: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that steps have written."""
    rows = [json.loads(line) for line in Storage.of(str(run)).read_bytes("metrics.jsonl").splitlines()]
    return [row for row in rows if row["images_seen"]]


def quarantined(run: Path) -> list[dict[str, Any]]:
    """The rows of quarantine.parquet; none where there is no such file."""
    import pyarrow.parquet as pq

    path = run / "quarantine.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def corrupt(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the quarantine's rows, those that count as corruption."""
    return [row for row in rows if not row["benign"]]


def discard(*runs: Path) -> None:
    """Remove the checkpoints of runs that are done with: ninety megabytes each."""
    for run in runs:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        shutil.rmtree(run / "encoder", ignore_errors=True)


# --- a disk that fills up ---------------------------------------------------------------------------------------------

ROOM, FULL_FROM = 1 << 20, 20  # files stay below that many bytes once this position is read


@contextlib.contextmanager
def room_afterwards() -> Iterator[None]:
    """Once the block has ended, this process can write large files again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillingDisk:
    """A reader around the run's own: from one position on, its process cannot write files of more than a megabyte."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.benign_reasons = reader, reader.benign_reasons

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        if position >= FULL_FROM:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        sample: dict[str, Any] = self.reader.read(unit, position, attempt)
        return sample

    def collate(self, units: Any) -> dict[str, Any]:
        batch: dict[str, Any] = self.reader.collate(units)
        return batch


def on_a_filling_disk(assemble: Callable[..., Any]) -> Callable[..., Any]:
    """`assemble` of a science, with a reader after which the disk is full."""

    def assemble_with_reader(config: Any, plan: Any, world: int) -> Any:
        parts = assemble(config, plan, world)
        parts.reader = FillingDisk(parts.reader)
        return parts

    return assemble_with_reader
