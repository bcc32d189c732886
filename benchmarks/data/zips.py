"""Patches per second out of zip archives, 448² PNG → 224² pixels, against torch's DataLoader over zipfile and Pillow.

    python benchmarks/data/zips.py [--seconds 2] [--rounds 5] [--slides FOLDER] [--ray]

The archives are cut at the start from the sample slides (or from those in FOLDER, or generated ones). `pathray` is
adios.data.PatchReader through pathray.data.stream with two threads. `DataLoader` is two processes that keep their
archives open, read a member, decode it and resize it by Pillow's BICUBIC. With `--ray` two Ray Train workers of one
thread each come first, through ray_jobs.train.rank_stream. Each is measured in order and shuffled; all hand out uint8
batches of 32.

Both stay open and take turns. At each turn the first batches, which were ready, are thrown away. The ratio is the
median over rounds of what was measured side by side, of patches per second and of patches per second of processor
time. Two cores, under a minute (two with `--ray`). Bar: 1.3 x the DataLoader.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2] + os.environ.get("PYTHONPATH", "").split(os.pathsep))

import numpy as np  # noqa: E402
from stream import processor_seconds, publish, wait_for  # noqa: E402

from adios.data import PatchReader  # noqa: E402
from adios.patches.cut import SlideCut, cut  # noqa: E402
from adios.patches.index import archives_of  # noqa: E402
from adios.patches.index_writer import index_patches  # noqa: E402
from adios.plan import build_plan  # noqa: E402
from pathray.data.order import uniform_order  # noqa: E402
from pathray.data.plan import Plan  # noqa: E402
from pathray.data.share import Lookup, rank_rows  # noqa: E402
from pathray.data.stream import DecodeSettings, stream_batches  # noqa: E402
from pathray.wsi.tiling import TileSpec  # noqa: E402

PATCH, SIZE, WORLD, MICRO, WARM = 448, 224, 2, 32, 10
POSITIONS = 1 << 17
SLIDES = ROOT.parent / "shared" / "data" / "wsi"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=Path, default=SLIDES)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = archives(folder, options.slides)
        print(f"{plan.rows} patches in {plan.sources.num_rows} archives", flush=True)
        processor_time(plan)
        if options.ray:
            print(f"pathray in two Ray Train workers  {through_ray(plan, folder, options.seconds):7.1f} patches/s")
        in_turns(plan, options.seconds, options.rounds)


def archives(folder: Path, slides: Path) -> Plan:
    """Cut archives, index them, and return their plan."""
    from pathray.wsi.reader import open_slide

    paths = sorted(slides.glob("*.svs")) or [generated(folder)]
    for path in paths:
        reader = open_slide(str(path))
        mpp = reader.mpp or 0.5
        reader.close()
        spec = TileSpec(PATCH, mpp, overlap_px=PATCH // 2, min_tissue_fraction=0.2)
        print(
            f"{path.name}: {cut(SlideCut(path.stem, str(folder / 'zips' / f'{path.stem}.zip'), str(path), mpp), spec)}"
        )
    root, found = archives_of(str(folder / "zips"))
    index_patches(root, found, str(folder / "index.parquet"), max_corrupt_fraction=0.0)
    return build_plan(str(folder / "index.parquet"), str(folder / "plan"), patch_size=PATCH)


def generated(folder: Path) -> Path:
    from ijepath_data import texture, write_pyramid

    write_pyramid(folder / "slide.tiff", texture(np.random.default_rng(0)), section=True)
    return folder / "slide.tiff"


def lookup_of(plan: Plan) -> Lookup:
    return Lookup(plan, uniform_order(plan.rows, seed=0))


def pathray(plan: Plan, rank: int = 0, world: int = 1, threads: int = WORLD) -> Iterator[Any]:
    lookup = lookup_of(plan)
    rows = rank_rows(lookup, 0, POSITIONS, world * MICRO, rank, world, MICRO)
    return (
        batch["image"]
        for batch in stream_batches(rows, PatchReader.of(plan, 0), lookup, DecodeSettings(threads=threads))
    )


class Members:
    """The same patches through zipfile and Pillow, as a torch dataset."""

    def __init__(self, plan: Plan) -> None:
        rows = lookup_of(plan)(np.arange(POSITIONS))["row"]
        names = [(path, name) for path in plan.sources["path"].to_pylist() for name in zipfile.ZipFile(path).namelist()]
        self.members = [names[row] for row in rows.tolist()]
        self.open: dict[str, zipfile.ZipFile] = {}

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> Any:
        import torch
        from PIL import Image

        path, name = self.members[i]
        if path not in self.open:
            self.open[path] = zipfile.ZipFile(path)
        with Image.open(io.BytesIO(self.open[path].read(name))) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small))


def data_loader(plan: Plan) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    dataset: Any = Members(plan)
    return iter(DataLoader(dataset, MICRO, num_workers=WORLD))


def processor_time(plan: Plan) -> None:
    """Milliseconds of one core per patch, one after the other in this process; the pictures must be equal."""
    lookup, reader, members = lookup_of(plan), PatchReader.of(plan, 0), Members(plan)
    units = lookup(np.arange(80))
    ways = {
        "pathray": lambda i: reader.read({name: values[i] for name, values in units.items()}, i, 0)["image"],
        "zipfile": lambda i: members[i].numpy(),
    }
    for i in range(16):
        ours, theirs = (way(i).astype(int) for way in ways.values())
        assert np.abs(ours - theirs).max() <= 1, "not the same picture"
    for name, way in ways.items():
        start = time.process_time()
        for i in range(16, 80):
            way(i)
        print(f"  {name:<12} {(time.process_time() - start) / 64 * 1e3:6.2f} ms of one core a patch", flush=True)


def rate(batches: Iterator[Any], seconds: float) -> tuple[float, int]:
    """Patches per second after the batches that were ready are thrown away; the patch count includes these."""
    ready = sum(len(batch) for batch in islice(batches, WARM))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += len(next(batches))
    return done / (time.perf_counter() - start), ready + done


def in_turns(plan: Plan, seconds: float, rounds: int) -> None:
    streams = {"DataLoader": data_loader(plan), "pathray": pathray(plan)}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for number in range(rounds):
        for name in list(streams)[:: 1 if number % 2 else -1]:
            before = processor_seconds()
            speed, count = rate(streams[name], seconds)
            time.sleep(0.5)  # until the queues are full again, as they were before
            measured[name].append((speed, count / (processor_seconds() - before)))
    for which, label in enumerate(("patches/s", "patches/s of processor time")):
        middle = {name: statistics.median(r[which] for r in rs) for name, rs in measured.items()}
        pairs = zip(measured["pathray"], measured["DataLoader"], strict=True)
        ratio = statistics.median(ours[which] / theirs[which] for ours, theirs in pairs)
        print(f"{label:28} " + "  ".join(f"{k} {v:.0f}" for k, v in middle.items()) + f"  x{ratio:.2f}", flush=True)
    streams["pathray"].close()


def train_worker(config: dict[str, Any]) -> None:
    """Measure one rank's stream for `seconds`."""
    import ray.train

    from ray_jobs.train.rank_stream import Share, stream

    rank, plan, folder = ray.train.get_context().get_world_rank(), Plan.open(config["plan"]), Path(config["folder"])
    share = Share(0, POSITIONS, WORLD * MICRO, MICRO, rank, WORLD)
    batches = stream(lookup_of(plan), PatchReader.of(plan, 0), share, settings=DecodeSettings(threads=1))
    images = (batch["image"] for batch in batches)
    next(images)
    publish(folder / f"ready-{rank}", None)
    for other in range(WORLD):
        wait_for(folder / f"ready-{other}")
    publish(folder / f"rate-{rank}", rate(images, config["seconds"])[0])
    images.close()


def through_ray(plan: Plan, folder: Path, seconds: float) -> float:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init(address="local", log_to_driver=False, num_cpus=WORLD + 2, include_dashboard=False, logging_level="WARNING")
    try:
        DataParallelTrainer(
            train_worker,
            train_loop_config={"plan": plan.path, "folder": str(folder), "seconds": 3 * seconds},
            scaling_config=ScalingConfig(num_workers=WORLD, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="zips", storage_path=str(folder / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    return sum(wait_for(folder / f"rate-{rank}") for rank in range(WORLD))


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
