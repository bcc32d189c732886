"""The feature store: how fast it is built and read, and folds two at a time; each as a ratio to something plain.

    python benchmarks/mil_store.py                              # everything on two free cores: about ten minutes
    python benchmarks/mil_store.py --only build,loader --slides 40 --pairs 7

`build`    bags of 500 to 8,000 tiles of width 1,024 in float32 H5 become a float16 store, in two processes, against one
           process that writes bytes of the same size and syncs them: time of the plain write / time of the build. The
           greatest resident memory of the building processes is printed.
`loader`   whole bags one by one from the store, by the reader that training uses with two threads, against torch's
           DataLoader with two workers over the H5 files; 2,048 tiles drawn of each bag, the same; and against copying
           arrays of the same size in memory. All files are in the page cache.
`folds`    `train_mil` on Ray with `parallel=2` against `parallel=1`: wall time, and whether all weights are equal.

Pairs alternate, and the median of their ratios counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mil.store.build import StoreBuild
from mil.store.places import BuildSettings, Source, read_header
from mil.store.reading import Store
from mil.store.write import Written, write_slide
from pathray.features.inference import read_ahead

D, LEAST, MOST, DRAWN = 1024, 500, 8000, 2048
BLOCK = 8 << 20
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="build,loader,folds")
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--folder", default=None, help="where files are written; a temporary one by default")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mil_store_", dir=options.folder))
    try:
        bags = write_bags(folder / "h5", options.slides)
        for name in options.only.split(","):
            {"build": build, "loader": loader, "folds": folds}[name](folder, bags, options.pairs)
    finally:
        shutil.rmtree(folder)


def write_bags(folder: Path, slides: int) -> list[Path]:
    folder.mkdir()
    draw = np.random.default_rng(0)
    paths = []
    for i in range(slides):
        n = int(draw.integers(LEAST, MOST))
        side = int(np.ceil(np.sqrt(n)))
        coords = np.stack(np.divmod(np.arange(n), side), axis=1)[:, ::-1] * 512
        paths.append(folder / f"s{i:03d}.h5")
        with h5py.File(paths[-1], "w") as file:
            file["features"] = draw.standard_normal((n, D), np.float32)
            file["coords"] = coords
            file["coords"].attrs["patch_size_level0"] = 512
    return paths


def build(folder: Path, bags: list[Path], pairs: int) -> None:
    headers = [read_header(Source(path.stem, str(path))) for path in bags]
    out = sum(h.rows for h in headers) * D * 2
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(8)))
        ratios = paired(
            lambda: raw_write(folder / "raw", out), lambda: build_store(folder / "store", headers, pool), pairs
        )
        memory = max(pool.map(peak_mib, range(8)))
    print(f"build: {out / 1e9:.2f} GB of float16; plain write with fsync / build {in_words(ratios)}")
    print(f"build: a process that builds takes {memory:.0f} MiB at most, of which {bare_mib():.0f} are imports")


def raw_write(path: Path, size: int) -> None:
    block = os.urandom(BLOCK)
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - at)])
        os.fsync(file.fileno())
    path.unlink()


def build_store(folder: Path, headers: list[Any], pool: ProcessPoolExecutor) -> list[Written]:
    shutil.rmtree(folder, ignore_errors=True)
    with StoreBuild(str(folder), BuildSettings(max_instances=None), headers) as building:
        return building.finish(pool.map(write_slide, building.places))


def peak_mib(_: int) -> float:
    time.sleep(0.05)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_mib() -> float:
    code = "import mil.store.write, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


class OverH5(Dataset[Any]):
    """What most MIL code does: a file per slide, opened and read at each step."""

    def __init__(self, paths: list[Path], most: int | None) -> None:
        self.paths, self.most = paths, most

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        with h5py.File(self.paths[i]) as file:
            features = file["features"][:]
        if self.most is not None and len(features) > self.most:
            features = features[np.random.default_rng(i).permutation(len(features))[: self.most]]
        return torch.from_numpy(features)


def loader(folder: Path, bags: list[Path], pairs: int) -> None:
    headers = [read_header(Source(path.stem, str(path))) for path in bags]
    with ProcessPoolExecutor(2) as pool:
        build_store(folder / "store", headers, pool)
    store = Store(str(folder / "store"))
    arrays = [np.array(store.features(i)) for i in range(len(store.ids))]
    for what, most in (("whole bags", None), (f"{DRAWN} tiles of each", DRAWN)):
        theirs = DataLoader(OverH5(bags, most), batch_size=None, num_workers=2, shuffle=True, persistent_workers=True)
        for _ in theirs:
            pass
        ratios = paired(partial(drain, theirs), partial(read_all, store, most), pairs)
        print(f"loader, {what}: DataLoader with two workers over H5 / store {in_words(ratios)}")
    ratios = paired(lambda: [a.copy() for a in arrays], lambda: read_all(store, None), pairs)
    print(f"loader, whole bags: copy in memory / store {in_words(ratios)}")


def read_all(store: Store, most: int | None) -> None:
    drain(read_ahead(reader(store, most), list(range(len(store.ids))), threads=2, timeout_s=600))


def reader(store: Store, most: int | None) -> Callable[[int], Any]:
    """What mil.data.BagReader does with a row of the store."""
    from mil.data import BagReader

    bags = object.__new__(BagReader)
    bags.seed, bags.most, bags.store = 0, most, store
    bags.slides, bags.names = list(range(len(store.ids))), list(store.ids)
    bags.truth = np.zeros(len(store.ids), np.float32)
    return lambda i: bags.read({"source": i}, i, 0)


def drain(items: Any) -> None:
    for _ in items:
        pass


def folds(folder: Path, bags: list[Path], pairs: int) -> None:
    headers = [read_header(Source(path.stem, str(path))) for path in bags]
    with ProcessPoolExecutor(2) as pool:
        build_store(folder / "store", headers, pool)
    rows = "".join(f"{path.stem},p{i},{'ab'[i % 2]}\n" for i, path in enumerate(bags))
    (folder / "slides.csv").write_text("slide_id,patient_id,label\n" + rows)
    seconds, digests = {}, {}
    for parallel in (1, 2):
        out = folder / f"folds_{parallel}"
        words = (
            f"data.csv={folder}/slides.csv", f"data.store={folder}/store", f"output={out}", f"parallel={parallel}",
            "training.max_epochs=6", "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.4", "data.threads=1",
            "logging.mlflow=false", "eval.resamples=100", "model.arguments.embed_dim=512",
        )  # fmt: skip
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ray_jobs.train_mil", *words], cwd=ROOT, check=True, capture_output=True)
        seconds[parallel] = time.perf_counter() - began
        weights = sorted(out.glob("fold_*/encoder/weights.safetensors"))
        digests[parallel] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    equal = digests[1] == digests[2] and len(digests[1]) == 5
    print(f"folds: five at two at a time / one after the other: {seconds[2] / seconds[1]:.2f} of {seconds[1]:.0f} s")
    print(f"folds: all weights {'equal' if equal else 'DIFFER'}")


def paired(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> list[float]:
    """Time of `first` over time of `second`, alternating which begins."""
    out = []
    for i in range(pairs):
        taken = {}
        for run in ((first, second), (second, first))[i % 2]:
            began = time.perf_counter()
            run()
            taken[run] = time.perf_counter() - began
        out.append(taken[first] / taken[second])
    return out


def in_words(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
