"""The slide reader against fastslide, tiffslide and OpenSlide: regions per second, as ratios of one run.

    python benchmarks/data/reader.py [--side 8192] [--seconds 0.3] [--rounds 12] [--slide FILE]

Two cores, about 2 minutes. 256² regions at random places of a generated slide (JPEG q85, 4:2:0, tiles of 256²):
`aligned` to the tile grid, `unaligned`, `halved` (512² averaged to 256²) and `resampled` (333² to 256², area), all
of level 0, with one and with two threads. Every backend reads the same places, in turns, without a tile cache
(OpenSlide keeps its own of 32 MB). The best of the rounds counts, since other load only slows. The second line of each
pair is processor time per region. Trust that one on a busy machine, where a library with its own threads gets more
than its share. "bare" is a positioned read and a decode of one tile in a loop, with nothing around it: the limit that
the codec sets. Backends that are not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from pathray.wsi.backends.libraries import is_installed  # noqa: E402
from pathray.wsi.reader import open_slide  # noqa: E402
from pathray.wsi.resize import resize  # noqa: E402

Read = Callable[[int, int], Any]
KINDS = {"aligned": 256, "unaligned": 256, "halved": 512, "resampled": 333}  # level-0 pixels a side


def stained(side: int, seed: int = 0) -> np.ndarray:
    """H&E-like texture ``[side, side, 3]``, a mosaic of one 1024² field: its tiles take about 20 kB at q85."""
    rng, n = np.random.default_rng(seed), 1024
    fibres = ndimage.gaussian_filter(rng.standard_normal((n, n)), (1.2, 5), mode="wrap")
    cells = ndimage.gaussian_filter(rng.standard_normal((n, n)), 4, mode="wrap")
    chromatin = ndimage.gaussian_filter(rng.standard_normal((n, n)), 1.1, mode="wrap")
    nuclei = 1 / (1 + np.exp(-25 * (cells / cells.std() - 1)))[..., None]
    stroma = np.array([221, 152, 194]) + np.array([10, 20, 14]) * (fibres / fibres.std())[..., None]
    nucleus = np.array([98, 66, 142]) + 16 * (chromatin / chromatin.std())[..., None]
    field = stroma * (1 - nuclei) + nucleus * nuclei + rng.normal(0, 2, (n, n, 1))
    return np.tile(np.clip(field, 0, 255).astype(np.uint8), (-(-side // n), -(-side // n), 1))[:side, :side]


def write_slide(path: Path, side: int, mpp: float = 0.5) -> None:
    """`side`² pixels in JPEG q85 with levels of 1, 2 and 4, spacing in the tags."""
    import tifffile

    level = stained(side)
    with tifffile.TiffWriter(path) as tiff:
        for down in (1, 2, 4):
            tiff.write(
                level,
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 85},
                photometric="rgb",
                subsampling=(2, 2),
                resolution=(10000 / mpp / down, 10000 / mpp / down),
                resolutionunit="CENTIMETER",
                subfiletype=int(down > 1),
                metadata=None,
            )
            level = (level.reshape(len(level) // 2, 2, -1, 2, 3).mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def readers(path: str, kind: str, cache_mb: int) -> dict[str, Read]:
    """One function per backend that reads the region of `kind` whose left upper corner is (x, y) at level 0."""
    side = KINDS[kind]
    reads: dict[str, Read] = {"pathray": ours(path, side, cache_mb)}
    for name, library in (("fastslide", fastslide_read), ("tiffslide", tiffslide_read), ("openslide", openslide_read)):
        if is_installed(name):
            reads[name] = shrunk(library(path, side), side)
    if kind == "aligned":
        reads["bare"] = bare(path)
    return reads


def ours(path: str, side: int, cache_mb: int) -> Read:
    slide = open_slide(path, cache_bytes=cache_mb << 20)
    if side == 256:
        return lambda x, y: slide.read_level(0, x, y, side, side)
    return lambda x, y: resize(slide.read_level(0, x, y, side, side), 256, 256)


def fastslide_read(path: str, side: int) -> Read:
    import fastslide

    slide = fastslide.FastSlide.from_file_path(path)
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (side, side)).numpy())


def tiffslide_read(path: str, side: int) -> Read:
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return lambda x, y: slide.read_region((x, y), 0, (side, side), as_array=True)


def openslide_read(path: str, side: int) -> Read:
    import openslide

    slide = openslide.OpenSlide(path)
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))


def shrunk(read: Read, side: int) -> Read:
    """The usual way with a library: read at level 0, shrink with Pillow."""
    from PIL import Image

    if side == 256:
        return read
    box = Image.Resampling.BOX
    return lambda x, y: np.asarray(Image.fromarray(read(x, y)).resize((256, 256), box))


def bare(path: str) -> Read:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offsets, counts, decode, tables = page.dataoffsets, page.databytecounts, page.decode, page.jpegtables
        across = -(-page.imagewidth // 256)
    file = os.open(path, os.O_RDONLY)

    def read(x: int, y: int) -> object:
        i = y // 256 * across + x // 256
        return decode(os.pread(file, counts[i], offsets[i]), i, jpegtables=tables)[0]

    return read


def places(kind: str, side: int, count: int = 4096) -> np.ndarray:
    """The same corners for all backends, ``[count, 2]``."""
    rng, size = np.random.default_rng(7), KINDS[kind]
    if kind == "aligned":
        return rng.integers(0, side // 256, (count, 2)) * 256
    return rng.integers(0, side - size, (count, 2))


def measure(read: Read, at: list[tuple[int, int]], threads: int, seconds: float) -> tuple[float, float]:
    """Regions per second of `threads` threads over `seconds`, and processor milliseconds per region."""
    done, stop = [0] * threads, time.perf_counter() + seconds

    def work(thread: int) -> None:
        i = thread
        while time.perf_counter() < stop:
            read(*at[i % len(at)])
            i += threads
            done[thread] += 1

    workers = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
    start, spent = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    count = max(1, sum(done))
    return count / (time.perf_counter() - start), 1000 * (time.process_time() - spent) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=0.3, help="per backend, kind, thread count and round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cache-mb", type=int, default=0, help="our decoded-tile cache; 0 as for a slide far larger")
    parser.add_argument("--slide", help="measure on this slide (at least --side pixels wide and high) instead")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or str(Path(folder) / "slide.tiff")
        if not options.slide:
            write_slide(Path(path), options.side)
            print(f"{options.side}² slide, {os.path.getsize(path) / (options.side / 256) ** 2 / 1312.5:.0f} kB a tile")
        print(f"{'':20} " + "".join(f"{n:>20}" for n in ("pathray", "fastslide", "tiffslide", "openslide", "bare")))
        for kind in options.kinds:
            reads = readers(path, kind, options.cache_mb)
            at = [(int(x), int(y)) for x, y in places(kind, options.side)]
            for threads in (1, 2):
                rates, costs = dict.fromkeys(reads, 0.0), dict.fromkeys(reads, float("inf"))
                for _ in range(options.rounds):
                    for name, read in reads.items():
                        rate, cost = measure(read, at, threads, options.seconds)
                        rates[name], costs[name] = max(rates[name], rate), min(costs[name], cost)
                print(f"{kind:10} {threads} thread{'s' * (threads > 1):1} " + line(rates, "/s", 0), flush=True)
                print(f"{'':20} " + line({n: 1 / c for n, c in costs.items()}, " ms", 3), flush=True)


def line(speeds: dict[str, float], unit: str, digits: int) -> str:
    """One cell per backend: its figure (speed, or its inverse in `ms`) and how many times faster ours is."""
    ours, cells = speeds["pathray"], []
    for name in ("pathray", "fastslide", "tiffslide", "openslide", "bare"):
        if name not in speeds:
            cells.append(" " * 20)
            continue
        figure = f"{1 / speeds[name] if unit == ' ms' else speeds[name]:.{digits}f}{unit}"
        cells.append(f"{figure:>13}" + (" " * 7 if name == "pathray" else f" x{ours / speeds[name]:5.2f}"))
    return "".join(cells)


if __name__ == "__main__":
    main()
