"""Volumes from Google's storage (an emulator) against local files: volumes per second, as ratios of one run.

    python benchmarks/oct_gcs.py [--volumes 48] [--frames 32] [--round-trip-ms 20] [--rounds 3]

Two cores, about 2 minutes. Generated retinas of 496 × 768 as HTJ2K are read and put on a grid of 64 × 384 × 384 by the
threads of the training stream, from a disk; from the emulator, which waits `--round-trip-ms` before each answer; and
from it while a tenth of its answers is 503 or 429. They take turns, and the best of the rounds counts, by the clock.
The emulator is a process of its own, which takes a part of the two cores: the ratio by the reading process's processor
time is without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
from pydicom import uid  # noqa: E402

from oct.data import VolumeReader  # noqa: E402
from oct.masks import MaskSampler  # noqa: E402
from oct.volume import Grid  # noqa: E402
from pathray.data.order import uniform_order  # noqa: E402
from pathray.data.share import Lookup, rank_rows  # noqa: E402
from pathray.data.stream import DecodeSettings, stream_batches  # noqa: E402
from tests.builders.gcs import HOST, TOKEN, GcsServer  # noqa: E402
from tests.builders.oct.opt_dicom import Scan, build_dicom  # noqa: E402
from tests.builders.oct.retina import layered_retina  # noqa: E402
from tests.builders.oct.volumes import small_config, write_plan  # noqa: E402

SHAPE, MICRO, FAILING = (496, 768), 4, 0.1


def serve(pipe: Connection, contents: Sequence[bytes], round_trip_s: float) -> None:
    """The emulator's process: sends its URL, then answers each share of failures with the reads since the last."""
    gcs = GcsServer(round_trip_s)
    for number, content in enumerate(contents):
        gcs.put(f"oct/{number}.dcm", content)
    gcs.start()
    pipe.send(gcs.url)
    begin = 0
    while (failing := pipe.recv()) is not None:
        asked = gcs.asked[begin:]
        begin, gcs.failing = len(gcs.asked), failing
        pipe.send((sum(a.kind == "read" and a.status < 400 for a in asked), len(asked)))


def read_all(paths: Sequence[str], lookup: Lookup, threads: int) -> tuple[float, float, bytes]:
    """Seconds by the clock and of this process's processor for all volumes in order, and a few of their pixels."""
    config = small_config()
    reader = VolumeReader(0, paths, ["1"] * len(paths), [(None, None, None)] * len(paths), Grid(),
                          MaskSampler.of(config), 4)  # fmt: skip
    begin, used, seen = time.perf_counter(), time.process_time(), b""
    rows = rank_rows(lookup, 0, len(paths), MICRO, 0, 1, MICRO)
    for batch in stream_batches(rows, reader, lookup, DecodeSettings(threads, 4)):
        assert not batch["corrupt"]
        seen += batch["image"][:, ::8, ::64, ::64].tobytes()
    return time.perf_counter() - begin, time.process_time() - used, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default in (("volumes", 48), ("frames", 32), ("round-trip-ms", 20), ("rounds", 3), ("threads", 4)):
        parser.add_argument(f"--{key}", type=int, default=default)
    options = parser.parse_args()
    retina = layered_retina(options.frames, *SHAPE)
    few = [build_dicom(np.roll(retina, 9 * n, 2), Scan(syntax=uid.HTJ2KLossless)) for n in range(4)]
    contents = [few[n % 4] for n in range(options.volumes)]
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(theirs, contents, options.round_trip_ms / 1000), daemon=True
    )
    server.start()
    os.environ[HOST], os.environ[TOKEN] = ours.recv(), "anon"
    from fsspec.config import conf

    conf["gs"] = conf["gcs"] = {"token": "anon"}
    with tempfile.TemporaryDirectory() as folder:
        local = []
        for number, content in enumerate(contents):
            path = Path(folder, f"{number}.dcm")
            path.write_bytes(content)
            local.append(str(path))
        urls = [f"gs://scans/oct/{number}.dcm" for number in range(options.volumes)]
        plan = write_plan(Path(folder, "plan"), rows=options.volumes, held_out=0)
        compare(options, ours, local, urls, Lookup(plan, uniform_order(options.volumes, seed=3)))
    ours.send(None)
    server.join()


def compare(options: argparse.Namespace, pipe: Connection, local: list[str], urls: list[str], lookup: Lookup) -> None:
    """Print volumes per second of the three, their ratios, and requests per volume."""
    ways = {"local files": (local, 0.0), "emulator": (urls, 0.0), "emulator, 10% 503/429": (urls, FAILING)}
    busy = dict.fromkeys(ways, float("inf"))
    best, asked, pixels = dict.fromkeys(ways, float("inf")), dict.fromkeys(ways, (0, 0)), set[bytes]()
    for _ in range(options.rounds):
        for name, (paths, failing) in ways.items():
            pipe.send(failing)
            pipe.recv()
            seconds, processor, seen = read_all(paths, lookup, options.threads)
            pipe.send(0.0)
            asked[name] = pipe.recv()
            best[name], busy[name] = min(best[name], seconds), min(busy[name], processor)
            pixels.add(seen)
    assert len(pixels) == 1, "not the same volumes in the same order"
    for name, seconds in best.items():
        reads, requests = (count / options.volumes for count in asked[name])
        ratio = best["local files"] / seconds
        work = busy["local files"] / busy[name]
        print(
            f"{name:24} {options.volumes / seconds:6.1f} volumes/s  {ratio:5.2f} of local files ({work:.2f} by "
            f"processor time)  {reads:.2f} reads and {requests:.2f} requests per volume",
            flush=True,
        )


if __name__ == "__main__":
    main()
