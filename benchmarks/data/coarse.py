"""Memory of coarse regions of a slide without coarse levels: 64 regions of 128 px at 4 µm, a flat slide of 0.25 µm.

    python benchmarks/data/coarse.py [side=24000]

Each region covers 2,048 x 2,048 level-0 pixels; all of them at once would take 800 MB before they are resized. Prints
the peak above what the process held before the read, and the bound of 200 MB.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_regions

REGIONS, SIZE, MPP, MPP0, BOUND_MB = 64, 128, 4.0, 0.25, 200


def write_flat(path: Path, side: int) -> None:
    """One level of `side` pixels, JPEG tiles of one repeated texture."""
    tile = np.random.default_rng(0).integers(120, 240, (512, 512, 3), np.uint8)
    tiles = (tile for _ in range((side // 512) ** 2))
    tifffile.imwrite(
        path,
        tiles,
        shape=(side // 512 * 512,) * 2 + (3,),
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="jpeg",
        resolution=(1e4 / MPP0, 1e4 / MPP0),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def peak_mb() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str]) -> None:
    side = int(dict(word.split("=") for word in argv).get("side", 24_000))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flat.tif"
        write_flat(path, side)
        slide = open_slide(str(path))
        read_regions(slide, [(side / 2, side / 2)], SIZE, MPP, mpp0=MPP0)  # imports and the codec's own tables
        before = peak_mb()
        centres = [(float(x), float(y)) for x, y in np.random.default_rng(1).uniform(1100, side - 1100, (REGIONS, 2))]
        regions = read_regions(slide, centres, SIZE, MPP, mpp0=MPP0)
        used = peak_mb() - before
        assert len(regions) == REGIONS and regions[0].pixels.shape == (SIZE, SIZE, 3)
        print(f"{REGIONS} regions of {SIZE} px at {MPP:g} µm: {used:.0f} MB above the start (bound {BOUND_MB})")


if __name__ == "__main__":
    main(sys.argv[1:])
