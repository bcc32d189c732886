"""Speed of the slide index and of the anchor search, on generated slides or on your own manifest.

    python benchmarks/data/index_anchors.py                      # makes its slides in a temporary folder
    python benchmarks/data/index_anchors.py --manifest slides.csv

Prints slides/s and anchors/s in one and in `--processes` processes, best of `--rounds`, each with its ratio to the
predecessor's figure (2 cores, same kind of slide: 8192² at 0.5 mpp, JPEG, about 625 anchors each). No Ray: a process
pool. The anchors' figures count anchors kept, so they depend on the stride; two strides are printed.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from ijepath.indexing.anchors import anchors_of
from ijepath.indexing.index import Row, index_slides
from ijepath.indexing.manifest import read_manifest
from ijepath.profile import Profile

PREDECESSOR = {"index": 63.0, "mask 4 mpp": 1894.0, "mask 0.5 mpp": 42.0}
SIDE, MPP, TILE = 8192, 0.5, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", help="a slide manifest; without it slides are generated")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=4, help="generated slides")
    parser.add_argument("--slides", type=int, default=480, help="rows of the generated manifest, over those files")
    args = parser.parse_args()
    with multiprocessing.get_context("fork").Pool(args.processes) as pool, tempfile.TemporaryDirectory() as folder:
        maps = {1: map, args.processes: partial(pool.imap, chunksize=4)}
        manifests = {"given masks": args.manifest} if args.manifest else generate(Path(folder), args.files, args.slides)
        for name, path in manifests.items():
            measure(name, str(path), maps, args.rounds)


def measure(name: str, path: str, maps: dict[int, Callable[..., Any]], rounds: int) -> None:
    manifest = read_manifest(path)
    rows: list[Row] = []
    for processes, over in maps.items():
        seconds, rows = best(lambda over=over: list(index_slides(manifest, map=over)), rounds)
        report(f"index, {name}", processes, len(rows) / seconds, "slides/s", PREDECESSOR["index"])
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        print(f"  {len(failed)} of {len(rows)} slides failed, e.g. {failed[0]['error']}")
    few = rows[:32]
    for stride in (0.25, 0.5):
        profile = Profile(anchor_stride_fraction=stride)
        for processes, over in maps.items():
            seconds, found = best(lambda p=profile, over=over: list(anchors_of(few, p, map=over)), rounds)
            anchors = sum(len(f) for f in found)
            label = f"anchors, {name}, stride {stride:g} ({anchors / len(few):.0f} a slide)"
            report(label, processes, anchors / seconds, "anchors/s", PREDECESSOR.get(name))


def best(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    times, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def report(what: str, processes: int, rate: float, unit: str, before: float | None) -> None:
    ratio = f"{rate / before:7.1f}x of {before:g}" if before else ""
    print(f"{what:<52} {processes} process(es) {rate:10.0f} {unit:<9} {ratio}", flush=True)


def generate(folder: Path, files: int, slides: int) -> dict[str, Path]:
    """Slides with levels of 0.5 and 1.0 mpp and their masks of 4 mpp and of 0.5 mpp (one level); two manifests."""
    for i in range(files):
        tissue = blob(np.random.default_rng(i), SIDE // 8)
        write_slide(folder / f"slide{i}.tiff", np.random.default_rng(i))
        write_mask(folder / f"mask{i}_4.tiff", tissue, 4.0)
        write_mask(folder / f"mask{i}_0p5.tiff", np.kron(tissue, np.ones((8, 8), np.uint8)), 0.5)
    out = {}
    for name, suffix in (("mask 4 mpp", "4"), ("mask 0.5 mpp", "0p5")):
        out[name] = folder / f"slides_{suffix}.csv"
        with out[name].open("w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["slide_id", "wsi_path", "mask_path"])
            writer.writerows(
                [f"s{k}", f"slide{k % files}.tiff", f"mask{k % files}_{suffix}.tiff"] for k in range(slides)
            )
    return out


def blob(rng: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """Tissue over about two thirds of the slide, with a ragged border and holes, 0/1 [side, side]."""
    from scipy.ndimage import zoom

    smooth = zoom(rng.normal(size=(12, 12)), side / 12, order=1) + 0.4 * zoom(
        rng.normal(size=(64, 64)), side / 64, order=1
    )
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return ((x**2 + y**2) * 1.2 - 0.35 * smooth < 1.0).astype(np.uint8)


def write_slide(path: Path, rng: np.random.Generator) -> None:
    """A pyramid of 8192² and 4096² in 256² JPEG tiles of quality 85; thirty-two tiles repeat."""
    import imagecodecs
    import tifffile

    grain = rng.integers(0, 60, (32, TILE, TILE, 3)) + np.array([150, 90, 140])
    tiles = [imagecodecs.jpeg_encode(t.astype(np.uint8), level=85) for t in grain]

    def some(side: int) -> Iterator[bytes]:
        yield from (tiles[k % len(tiles)] for k in range((side // TILE) ** 2))

    with tifffile.TiffWriter(path) as writer:
        for level, side in enumerate((SIDE, SIDE // 2)):
            writer.write(
                some(side),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="rgb",
                resolution=(1e4 / (MPP * 2**level), 1e4 / (MPP * 2**level)),
                resolutionunit="CENTIMETER",
                subifds=1 if level == 0 else 0,
                subfiletype=1 if level else 0,
            )


def write_mask(path: Path, mask: np.ndarray[Any, Any], mpp: float) -> None:
    import tifffile

    density = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, mask, tile=(512, 512), compression="deflate", resolution=density, resolutionunit="CENTIMETER"
    )


if __name__ == "__main__":
    main()
