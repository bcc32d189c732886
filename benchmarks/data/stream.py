"""Tiles per second into two Ray Train workers, against torch's DataLoader over tiffslide and over OpenSlide.

    python benchmarks/data/stream.py [--seconds 1] [--rounds 9] [--kinds aligned] [--threads 1]

Two cores, about 2 minutes. Regions of 256² at random places of several generated slides (as in reader.py: 8192² at 0.5
mpp, JPEG q85): `aligned` to the tile grid, `unaligned`, and `resampled` (333² of level 0 averaged to 256²).
Ours is `ray_jobs.train.rank_stream.stream` in the two workers of one Ray Train run, which only count. The DataLoaders
have two workers and the same places, batch size and (no) tile cache, and hand out tensors. `bare` is a positioned read
and a decode in a loop, in two processes, with nothing around it.

All of them stay open and take turns. At each turn the first batches, decoded while others were measured, are thrown
away, so start-up and queues do not count. Ratios are medians over the rounds of what was measured side by side. They
are printed for tiles per second, and for tiles per second of processor time of all processes together: trust the
second on a busy machine.
Bars: aligned 2.5 x tiffslide, 4 x OpenSlide and 0.75 of bare; unaligned 1.5 and resampled 1.6 x the faster library.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ.setdefault(name, value)
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2] + os.environ.get("PYTHONPATH", "").split(os.pathsep))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from reader import KINDS, bare, openslide_read, shrunk, tiffslide_read, write_slide  # noqa: E402

from pathray.data.order import uniform_order  # noqa: E402
from pathray.data.plan import Plan, PlanWriter  # noqa: E402
from pathray.data.share import Lookup  # noqa: E402
from pathray.data.stream import DecodeSettings  # noqa: E402
from pathray.wsi.handles import HandleCache  # noqa: E402
from pathray.wsi.regions import read_region  # noqa: E402

MPP, SIZE, WORLD, UNITS = 0.5, 256, 2, 1 << 15
WARM = 12  # batches thrown away at each turn: more than anybody keeps decoded
LIBRARIES = {"tiffslide": tiffslide_read, "openslide": openslide_read}
Turn = Callable[[float], tuple[float, int]]  # seconds → tiles a second, tiles taken in all


@dataclass
class RegionReader:
    """The region of `size` level-0 pixels whose left upper corner is the unit's (x, y), as 256² pixels."""

    paths: list[str]
    size: int
    handles: HandleCache
    benign_reasons: frozenset[str] = frozenset()

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        slide = self.handles.get(self.paths[int(unit["source"])])
        half, mpp = self.size // 2, MPP * self.size / SIZE
        return {"image": read_region(slide, unit["x"] + half, unit["y"] + half, SIZE, mpp, mpp0=MPP).pixels}

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"image": np.stack([unit["image"] for unit in units])}


class Tiles:
    """The same units through a library, as a torch dataset."""

    def __init__(self, lookup: Lookup, paths: list[str], library: str, size: int) -> None:
        self.lookup, self.paths, self.backend, self.size = lookup, paths, library, size
        self.rows = lookup(np.arange(UNITS))
        self.open: dict[int, Any] = {}

    def __len__(self) -> int:
        return UNITS * 1000

    def __getitem__(self, i: int) -> Any:
        import torch

        at = i % UNITS
        source = int(self.rows["source"][at])
        if source not in self.open:
            self.open[source] = shrunk(LIBRARIES[self.backend](self.paths[source], self.size), self.size)
        pixels = self.open[source](int(self.rows["x"][at]), int(self.rows["y"][at]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's arrays are read-only, and so they stay
            return torch.from_numpy(np.ascontiguousarray(pixels))


def rate(batches: Iterator[Any], seconds: float, count: Callable[[Any], int] = len) -> tuple[float, int]:
    """Items per second after the batches that were ready are thrown away; the item count includes these."""
    ready = sum(count(batch) for batch in islice(batches, WARM))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += count(next(batches))
    return done / (time.perf_counter() - start), ready + done


def both(rates: Iterable[Sequence[float]]) -> tuple[float, int]:
    speeds, counts = zip(*rates, strict=True)
    return sum(speeds), int(sum(counts))


def loader(lookup: Lookup, paths: list[str], library: str, kind: str, micro: int) -> Turn:
    from torch.utils.data import DataLoader

    dataset: Any = Tiles(lookup, paths, library, KINDS[kind])
    batches = iter(DataLoader(dataset, micro, num_workers=WORLD))
    return lambda seconds: rate(batches, seconds)


def bare_processes(lookup: Lookup, paths: list[str]) -> Turn:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(WORLD)]
    for rank, (_, theirs) in enumerate(pipes):
        context.Process(target=bare_loop, args=(lookup, paths, rank, theirs), daemon=True).start()

    def turn(seconds: float) -> tuple[float, int]:
        for ours, _ in pipes:
            ours.send(seconds)
        return both([ours.recv() for ours, _ in pipes])

    return turn


def bare_loop(lookup: Lookup, paths: list[str], rank: int, pipe: Any) -> None:
    reads, rows = [bare(path) for path in paths], lookup(np.arange(UNITS))
    places = list(zip(*(rows[name].tolist() for name in ("source", "x", "y")), strict=True))

    def endless() -> Iterator[tuple[Any]]:
        i = rank
        while True:
            source, x, y = places[i % UNITS]
            yield (reads[source](x, y),)
            i += WORLD

    tiles = endless()
    while True:
        pipe.send(rate(tiles, pipe.recv()))


def train_worker(config: dict[str, Any]) -> None:
    """Open the stream of a kind at its first turn and measure it at each turn, until no kind is left."""
    import ray.train

    from ray_jobs.train.rank_stream import Share, stream

    rank, folder, micro = ray.train.get_context().get_world_rank(), Path(config["folder"]), config["micro"]
    publish(folder / f"ready-{rank}", None)
    turn, kind, batches = 0, None, iter(())
    while (asked := wait_for(folder / f"turn-{turn}"))["kind"] is not None:
        if asked["kind"] != kind:
            kind = asked["kind"]
            batches.close() if turn else None
            start = time.perf_counter()
            reader = RegionReader(config["paths"], KINDS[kind], HandleCache(len(config["paths"]), 0))
            share = Share(0, UNITS * 1000, WORLD * micro, micro, rank, WORLD)
            settings = DecodeSettings(threads=config["threads"])
            batches = stream(open_lookup(folder / kind), reader, share, settings=settings)
            next(batches)
            publish(folder / f"first-{turn}-{rank}", time.perf_counter() - start)
        publish(folder / f"done-{turn}-{rank}", rate(batches, asked["seconds"], lambda batch: len(batch["image"])))
        turn += 1


class RayTrain:
    """A Ray Train run in the background whose workers measure a kind on request."""

    def __init__(self, folder: Path, paths: list[str], options: argparse.Namespace) -> None:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        start = time.perf_counter()
        ray.init(
            address="local",
            log_to_driver=False,
            num_cpus=WORLD + 2,
            include_dashboard=False,
            object_store_memory=200 << 20,
            logging_level="WARNING",
        )
        config = {"folder": str(folder), "paths": paths}
        config |= {name: getattr(options, name) for name in ("kinds", "threads", "micro")}
        trainer = DataParallelTrainer(
            train_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=WORLD, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="stream", storage_path=str(folder / "ray")),
        )
        self.folder, self.turn_number = folder, 0
        self.thread = threading.Thread(target=trainer.fit, daemon=True)
        self.thread.start()
        for rank in range(WORLD):
            wait_for(folder / f"ready-{rank}", self.thread)
        print(f"Ray, its workers started in {time.perf_counter() - start:.1f} s", flush=True)

    def of(self, kind: str) -> Turn:
        return lambda seconds: self.ask(kind, seconds)

    def ask(self, kind: str, seconds: float) -> tuple[float, int]:
        publish(self.folder / f"turn-{self.turn_number}", {"kind": kind, "seconds": seconds})
        number = self.turn_number
        names = [f"done-{self.turn_number}-{rank}" for rank in range(WORLD)]
        self.turn_number += 1
        rates = both([wait_for(self.folder / name, self.thread) for name in names])
        if (first := self.folder / f"first-{number}-0").exists():
            print(f"{kind:10} first batch {wait_for(first):.2f} s after its stream was opened", flush=True)
        return rates

    def close(self) -> None:
        import ray

        publish(self.folder / f"turn-{self.turn_number}", {"kind": None})
        self.thread.join()
        ray.shutdown()


def publish(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def wait_for(path: Path, alive: threading.Thread | None = None) -> Any:
    while not path.exists():
        assert alive is None or alive.is_alive(), "the Ray Train run has ended"
        time.sleep(0.002)
    return json.loads(path.read_text())


def write_plan(path: Path, kind: str, slides: int, side: int) -> None:
    rng, size = np.random.default_rng(7), KINDS[kind]
    at = (
        rng.integers(0, side // SIZE, (UNITS, 2)) * SIZE
        if kind == "aligned"
        else rng.integers(0, side - size, (UNITS, 2))
    )
    columns = {"source": np.int32, "x": np.int32, "y": np.int32}
    with PlanWriter(path, columns, pa.table({"slide": list(range(slides))})) as writer:
        writer.append({"source": rng.integers(0, slides, UNITS), "x": at[:, 0], "y": at[:, 1]})


def open_lookup(path: Path) -> Lookup:
    return Lookup(Plan.open(path), uniform_order(UNITS, seed=0))


def processor_seconds() -> float:
    """Processor seconds so far of this process and all below it, Ray's own included."""
    parents, spent = dict[int, int](), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(file.parent.name)
        parents[pid], spent[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    below = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= found
    return sum(spent[pid] for pid in below) / os.sysconf("SC_CLK_TCK")


def measure(turns: dict[str, Turn], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Name → per round (tiles per second, tiles per second of processor time)."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for turn in turns.values():  # opens what is not open yet
        turn(options.seconds / 4)
    for number in range(options.rounds):
        for name in list(turns)[:: 1 if number % 2 else -1]:
            before = processor_seconds()
            speed, count = turns[name](options.seconds)
            time.sleep(0.3)  # until the queues are full again, as they were before
            measured[name].append((speed, count / (processor_seconds() - before)))
    return measured


def report(kind: str, measured: dict[str, list[tuple[float, float]]]) -> None:
    load = os.getloadavg()[0]
    for which, label in enumerate(("tiles/s", "tiles/s of processor time")):
        cells = []
        for name, rounds in measured.items():
            middle = statistics.median(r[which] for r in rounds)
            ratio = statistics.median(o[which] / r[which] for o, r in zip(measured["pathray"], rounds, strict=True))
            cells.append(f"{name} {middle:.0f}" + (f" (x{ratio:.2f})" if name != "pathray" else ""))
        print(f"{kind:10} {label:26} " + "  ".join(cells) + (f"  load {load:.1f}" if not which else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--micro", type=int, default=32, help="batch size")
    parser.add_argument("--threads", type=int, default=1, help="decoding threads of a Ray Train worker")
    parser.add_argument("--kinds", nargs="*", default=["aligned", "unaligned", "resampled"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i}.tiff") for i in range(options.slides)]
        write_slide(Path(paths[0]), options.side, MPP)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)
        contests: dict[str, dict[str, Turn]] = {}
        for kind in options.kinds:
            write_plan(folder / kind, kind, options.slides, options.side)
            lookup = open_lookup(folder / kind)
            # forked before Ray starts threads of its own
            contests[kind] = {library: loader(lookup, paths, library, kind, options.micro) for library in LIBRARIES}
            if kind == "aligned":
                contests[kind]["bare"] = bare_processes(lookup, paths)
        ray_train = RayTrain(folder, paths, options)
        for kind, turns in contests.items():
            report(kind, measure({"pathray": ray_train.of(kind), **turns}, options))
        ray_train.close()


if __name__ == "__main__":
    main()
