"""Decoding of OCT frames against a bare codec loop and against pydicom: frames per second, as ratios of one run.

    python benchmarks/oct_decode.py [--frames 24] [--rounds 5]

About 1 minute. A generated retina (496 × 768, 8 bits) per transfer syntax. "ours" is open, header, fragments and all
frames in order; "bare" calls the codec on the same bytes in a loop and nothing else: the limit that the codec sets
(uncompressed, an array of the bytes); "pydicom" is its `pixel_array`. They take turns, and the best of the rounds
counts. Times of one thread are processor time. "2 threads" is how much faster two threads decode than one: by the
clock, less the time that a thread could run and got no core (Linux counts it), so that other load hardly matters.
Waiting for Python's lock counts.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import pydicom  # noqa: E402
from pydicom import uid  # noqa: E402

from oct.dicom.codecs import DECODERS  # noqa: E402
from oct.dicom.file import open_dicom  # noqa: E402
from oct.dicom.fragments import split_frames  # noqa: E402
from oct.dicom.frames import iterate_frames  # noqa: E402
from oct.dicom.header import describe  # noqa: E402
from tests.builders.oct.opt_dicom import Scan, build_dicom  # noqa: E402
from tests.builders.oct.retina import layered_retina  # noqa: E402

SYNTAXES = (uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.JPEGLSLossless, uid.RLELossless, uid.ExplicitVRLittleEndian)
SHAPE = (496, 768)
LONG_S = 0.2  # seconds of work in each thread
Work = Callable[[], object]


def ours(content: bytes) -> Work:
    """Decode all frames, as a reader does."""

    def work() -> None:
        file = open_dicom(content, "")
        for frame in iterate_frames(file, describe(file)):
            frame.sum()

    return work


def bare(content: bytes, syntax: str, frames: int) -> Work:
    """The codec on every frame; for uncompressed pixels, an array of the bytes."""
    file = open_dicom(content, "")
    assert file.pixels is not None
    if not file.is_encapsulated:
        pixels = np.frombuffer(file.pixels, np.uint8).reshape(frames, *SHAPE)
        return lambda: [frame.sum() for frame in pixels]
    data, decode = [f[0] for f in split_frames(file.pixels, frames, "")], DECODERS[syntax]
    return lambda: [decode(frame, SHAPE, 8).sum() for frame in data]


def pydicoms(content: bytes) -> Work:
    return lambda: [frame.sum() for frame in pydicom.dcmread(BytesIO(content)).pixel_array]


def processor_seconds(work: Work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def thread_seconds(work: Work, threads: int, repeats: int) -> float:
    """Of `threads` threads that each do `work` so often, per work done: the slowest one's time, without that in which
    it waited for a core."""
    taken: list[float] = []

    def run() -> None:
        begin, waited = time.perf_counter(), waited_for_core()
        for _ in range(repeats):
            work()
        taken.append(time.perf_counter() - begin - (waited_for_core() - waited))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(taken) / (threads * repeats)


def waited_for_core() -> float:
    """Seconds so far in which this thread could run and got no core."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    volume = layered_retina(options.frames, *SHAPE)
    print(f"{'':48} {'ours':>10} {'of bare':>9} {'of pydicom':>11} {'2 threads':>10}")
    for syntax in SYNTAXES:
        content = build_dicom(volume, Scan(syntax=syntax))
        works = {"ours": ours(content), "bare": bare(content, syntax, options.frames), "pydicom": pydicoms(content)}
        best = dict.fromkeys([*works, "one", "two"], float("inf"))
        for _ in range(options.rounds):
            for name, work in works.items():
                best[name] = min(best[name], processor_seconds(work))
            for name, threads in (("one", 1), ("two", 2)):
                repeats = max(1, round(LONG_S / best["ours"]))
                best[name] = min(best[name], thread_seconds(works["ours"], threads, repeats))
        print(
            f"{syntax.name[:48]:48} {options.frames / best['ours']:8.0f}/s {best['bare'] / best['ours']:8.2f}x"
            f" {best['pydicom'] / best['ours']:10.2f}x {best['one'] / best['two']:9.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
