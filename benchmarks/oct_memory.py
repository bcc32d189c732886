"""Peak memory while a volume of 512 × 1,024 × 512 voxels is put on the grid: file, output, and a few frames.

    python benchmarks/oct_memory.py

Each syntax is read in a process of its own, onto the default grid and onto that of `--config fov`. "above the start" is
the process's largest resident memory over that before the call; "expected" is the compressed file, the output and four
frames in float32. Half a minute; 1 GB of memory while the volume is made. Linux only.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydicom import uid

from oct.dicom.resample import read_volume
from oct.volume import Grid
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina

SHAPE, BLOCK = (512, 1024, 512), 32  # B-scans that are made at once, and then repeated in mirror
SPACING_MM = (6 / 512, 2 / 1024, 6 / 512)
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.HTJ2KLossless, uid.JPEG2000Lossless, uid.RLELossless)
GRIDS = {"default": Grid(), "fov": Grid(spacing_mm=(0.1, 0.005, 0.0167))}


def main() -> None:
    block = layered_retina(BLOCK, *SHAPE[1:])
    volume = np.concatenate([block, block[::-1]] * (SHAPE[0] // BLOCK // 2))
    with tempfile.TemporaryDirectory() as folder:
        for syntax in SYNTAXES:
            path = Path(folder) / "volume.dcm"
            path.write_bytes(build_dicom(volume, Scan(syntax=syntax, spacing_mm=SPACING_MM)))
            for name in GRIDS:
                child = multiprocessing.get_context("spawn").Process(
                    target=measure, args=(str(path), syntax.name, name)
                )
                child.start()
                child.join()
                assert child.exitcode == 0, syntax.name


def measure(path: str, syntax: str, grid: str) -> None:
    """Print the memory of one read in this process, which has read a small volume before."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as small:  # imports and buffers that do not depend on the volume
        Path(small.name).write_bytes(build_dicom(layered_retina(4, 64, 64), Scan()))
        read_volume(small.name, GRIDS[grid])
    before = peak_mb()
    sampled, header = read_volume(path, GRIDS[grid])
    size = Path(path).stat().st_size
    expected = (size + sampled.image.nbytes + 4 * 4 * header.rows * header.columns) / 2**20
    found = f"{peak_mb() - before:.0f} MB above the start, expected {expected:.0f} (file {size / 2**20:.0f})"
    print(f"{syntax}, grid {grid}: {found}", flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process; getrusage's would be that of its parent, where that was larger."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
