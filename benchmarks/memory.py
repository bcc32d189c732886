"""Whether memory of driver and workers stays flat: 10,000 I-JEPATH samples over 1,000 slides, and their index.

    python benchmarks/memory.py [--parts index stream] [--slides 1000] [--samples 10000] [--decode-on worker]

Two cores, about two minutes. The slides are hard links to a few generated ones (1024² at 0.5 mpp, JPEG; every second
one without a mask). For the caches of handles, tiles and tissue, which are made small, they are 1,000 files. `index`
indexes them over Ray as the job does. `stream` takes contexts of 128 µm through `ray_jobs.train.rank_stream` and the
training reader in one Ray Train worker, without training. At ten equally spaced points it prints, for driver and
worker, resident megabytes (without the object store's shared pages), open files and threads, and the bytes of decoded
tiles.

Bars, over the second half: less than 5 MB per 1,000 samples (or slides) by least squares; a constant number of open
files, except for the few reads in progress at that moment. Exit code 1 where one fails. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2] + os.environ.get("PYTHONPATH", "").split(os.pathsep))

import numpy as np  # noqa: E402
from reader import write_slide  # noqa: E402

from ijepath.config import DataConfig, OptimizationConfig, RunConfig  # noqa: E402
from ijepath.data import AnchorReader, ReaderConfig  # noqa: E402
from ijepath.indexing.anchors import anchors_of  # noqa: E402
from ijepath.indexing.catalog_writer import write_catalog  # noqa: E402
from ijepath.indexing.index import Row, SlideIndex, failed_row, index_slides, write_index  # noqa: E402
from ijepath.indexing.manifest import read_manifest  # noqa: E402
from ijepath.plan import build_plan, strata  # noqa: E402
from ijepath.profile import Profile  # noqa: E402
from pathray.data.order import stratified_order  # noqa: E402
from pathray.data.plan import Plan  # noqa: E402
from pathray.data.share import Lookup  # noqa: E402
from pathray.data.stream import DecodeSettings  # noqa: E402
from ray_jobs.extract.ordered_map import RayMap  # noqa: E402
from ray_jobs.shell.runtime import RuntimeConfig, ray_session  # noqa: E402

POINTS, FILES, SIDE, BATCH = 10, 4, 1024, 8
BAR_MB, UNDER_WAY = 5.0, 12  # two threads may each hold slides and masks that fell out of the handles


@dataclass(frozen=True)
class Usage:
    """Memory, files and threads of one process."""

    mb: float
    files: int
    threads: int
    tiles_mb: float = 0.0

    @classmethod
    def of(cls, pid: int | str = "self", tiles: int = 0) -> Usage:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        kilobytes = [int(status[name].split()[0]) for name in ("VmRSS", "RssShmem")]
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return cls((kilobytes[0] - kilobytes[1]) / 1024, files, int(status["Threads"]), tiles / (1 << 20))


Point = tuple[int, dict[str, Usage]]  # samples or slides so far, by process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("index", "stream"), default=("index", "stream"))
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--decode-on", choices=("worker", "cluster"), default="worker")
    options = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as name, ray_session(RuntimeConfig(address="local"), cpus=2):
        folder = Path(name)
        generate(folder, options.slides)
        rows, points = index(folder)
        if "index" in options.parts:
            passed &= report("index", "slides", points)
        if "stream" in options.parts:
            write_plan(folder, rows)
            passed &= report("stream", "samples", stream(folder, options))
    return 0 if passed else 1


def generate(folder: Path, slides: int) -> None:
    """Write `slides` files, hard links of FILES, and their manifest; every second one has its own mask."""
    import tifffile

    tissue = np.zeros((SIDE // 8, SIDE // 8), np.uint8)
    tissue[8:-8, 8:-8] = 255
    for i in range(FILES):
        write_slide(folder / f"file{i}.tiff", SIDE)
        tifffile.imwrite(folder / f"file{i}_mask.tiff", tissue, tile=(64, 64), compression="deflate")
    lines = ["slide_id,wsi_path,mask_path"]
    for i in range(slides):
        os.link(folder / f"file{i % FILES}.tiff", folder / f"{i}.tiff")
        os.link(folder / f"file{i % FILES}_mask.tiff", folder / f"{i}_mask.tiff")
        lines.append(f"s{i},{i}.tiff,{f'{i}_mask.tiff' if i % 2 else ''}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")


def index(folder: Path) -> tuple[list[Row], list[Point]]:
    """Index the slides in Ray tasks; return their rows, and the usage of the driver and of the tasks' processes."""
    manifest = read_manifest(str(folder / "slides.csv"))
    rows: list[Row] = []
    points: list[Point] = []
    over_ray = RayMap(lambda item, error: failed_row(item[0], str(error)), chunk=8)
    for row in index_slides(manifest, map=over_ray):
        rows.append(row)
        if len(rows) % (len(manifest) // POINTS) == 0:
            points.append((len(rows), {"driver": Usage.of(), "worker": largest_task()}))
    assert all(row["status"] == "ok" for row in rows), [row["error"] for row in rows if row["error"]][:3]
    return rows, points


def largest_task() -> Usage:
    """The largest usage of any process that runs this Ray's tasks, value by value."""
    found = [Usage.of(pid) for pid in task_processes(os.getpid())]
    return Usage(*(max(values) for values in zip(*(asdict(one).values() for one in found), strict=True)))


def task_processes(parent: int) -> list[int]:
    """Descendants of `parent` that Ray has named after a task or an idle worker."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").exists():
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(above, []).append(int(entry.name))
    found, open_ = [], [parent]
    while open_:
        below = children.get(open_.pop(), [])
        open_ += below
        found += [pid for pid in below if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")]
    return found


def write_plan(folder: Path, rows: Sequence[Row]) -> None:
    profile = Profile(context_fov_um=128.0, target_fov_um=32.0, target_margin_um=4.0)
    slides, catalog = str(folder / "slides.parquet"), str(folder / "catalog.json")
    write_index(slides, SlideIndex(tuple(rows), ()))
    write_catalog(catalog, profile, anchors_of(rows, profile), slide_index=slides, metadata_columns=())
    build_plan(catalog, str(folder / "plan"))


def stream(folder: Path, options: argparse.Namespace) -> list[Point]:
    """Take the samples in a Ray Train worker of one rank, which measures itself and this process."""
    from ray.train import RunConfig as TrainRun
    from ray.train import ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    config = {**vars(options), "folder": str(folder), "driver": os.getpid()}
    run = TrainRun(name="memory", storage_path=str(folder / "ray"))
    DataParallelTrainer(
        take, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1), run_config=run
    ).fit()
    points = json.loads((folder / "points.json").read_text())
    return [(count, {name: Usage(**usage) for name, usage in held.items()}) for count, held in points]


def take(config: dict[str, Any]) -> None:
    """In the worker: the stream as a training run opens it, without the training."""
    from ray_jobs.train.rank_stream import Share, stream

    folder, plan = Path(config["folder"]), Plan.open(Path(config["folder"]) / "plan")
    reader = anchor_reader(plan)
    share = Share(0, config["samples"] // BATCH * BATCH, BATCH, BATCH, 0, 1)
    lookup = Lookup(plan, stratified_order(strata(plan), 0))
    batches = stream(lookup, reader, share, decode_on=config["decode_on"], settings=DecodeSettings(threads=2))
    points, taken = [], 0
    for _ in range(POINTS):
        taken += sum(len(batch["context"]) for batch in islice(batches, config["samples"] // BATCH // POINTS))
        gc.collect()
        held = {"driver": Usage.of(config["driver"]), "worker": Usage.of(tiles=reader.handles.tiles.nbytes)}
        points.append((taken, {name: asdict(one) for name, one in held.items()}))
    (folder / "points.json").write_text(json.dumps(points))


def anchor_reader(plan: Plan) -> AnchorReader:
    """The training reader with caches that are full long before half of the samples are read."""
    data = DataConfig(
        context_fov_um=128.0, target_fov_um=32.0, target_margin_um=4.0,
        max_open_slides=32, tile_cache_mb=32, tissue_cache_mb=2,
    )  # fmt: skip
    config = RunConfig(data=data, optimization=OptimizationConfig(1, global_batch=BATCH, micro_batch=BATCH))
    return AnchorReader(ReaderConfig.of(config), plan.sources.to_pydict())


def report(part: str, unit: str, points: Sequence[Point]) -> bool:
    """Print the points and the verdict on their second half; return whether they meet the bars."""
    print(f"\n{part:8} " + "   ".join(f"{name:>8}: MB  files threads  tiles MB" for name in points[0][1]))
    for count, held in points:
        columns = (f"{u.mb:12.1f} {u.files:6d} {u.threads:7d} {u.tiles_mb:9.1f}" for u in held.values())
        print(f"{count:8d} " + "   ".join(columns))
    half, passed = points[len(points) // 2 - 1 :], True
    counts = np.array([count for count, _ in half]) / 1000
    for name in half[0][1]:
        slope = float(np.polyfit(counts, [held[name].mb for _, held in half], 1)[0])
        files = [held[name].files for _, held in half]
        good = slope < BAR_MB and max(files) - min(files) <= UNDER_WAY
        passed &= good
        verdict = "pass" if good else "FAIL"
        print(f"{part} {name:7} {slope:+7.2f} MB per 1,000 {unit}, {min(files)} to {max(files)} open files: {verdict}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
