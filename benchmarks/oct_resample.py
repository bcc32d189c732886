"""A volume onto the grid against MONAI and SciPy: seconds, as ratios of one run, and the error against float64.

    python benchmarks/oct_resample.py [--rounds 5]

One core, about 1 minute. Frames are in memory, uint8; the grid is 64 × 384 × 384 voxels of .05 × .02 × .02 mm. "monai"
is `Spacing` and then `ResizeWithPadOrCrop`, where MONAI is installed; "scipy" is `ndimage.zoom`, linear, and the same
crop. Both need all frames in float32, and neither antialiases. All take turns; the best processor time of the rounds
counts.
"error" is our largest difference from PyTorch's antialiased interpolation in float64, in greys of 255, over the whole
volume fitted to the grid.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402
from torch.nn import functional  # noqa: E402

from oct.dicom.resample import put_on_grid  # noqa: E402
from oct.volume import GREY, Geometry, Grid, Triple, VolumeHeader  # noqa: E402
from tests.builders.oct.retina import layered_retina  # noqa: E402

SCANS: dict[tuple[int, int, int], Triple] = {
    (31, 496, 768): (0.24, 0.00387, 0.0118),
    (128, 1024, 512): (0.047, 0.00195, 0.0117),
    (256, 992, 512): (0.0235, 0.0026, 0.0117),
}
Work = Callable[[], object]


def header_of(shape: tuple[int, int, int], spacing_mm: Triple, source: str = "positions") -> VolumeHeader:
    geometry = Geometry(spacing_mm, (source,) * 3, tuple(range(shape[0])))
    return VolumeHeader("", "", "", *shape, 8, False, "", "", "", geometry)


def monais(volume: np.ndarray, spacing_mm: Triple, grid: Grid) -> Work:
    from monai.data import MetaTensor
    from monai.transforms import Compose, ResizeWithPadOrCrop, Spacing

    affine = torch.diag(torch.tensor([*spacing_mm, 1.0]))
    resample = Compose([Spacing(grid.spacing_mm, mode="bilinear"), ResizeWithPadOrCrop(grid.shape)])
    return lambda: resample(MetaTensor(torch.from_numpy(volume)[None].float(), affine=affine))


def scipys(volume: np.ndarray, spacing_mm: Triple, grid: Grid) -> Work:
    factors = np.array(spacing_mm) / grid.spacing_mm

    def work() -> np.ndarray:
        large = ndimage.zoom(volume.astype(np.float32), factors, order=1)
        begin = [max(0, (n - m) // 2) for n, m in zip(large.shape, grid.shape, strict=True)]
        return large[tuple(slice(b, b + m) for b, m in zip(begin, grid.shape, strict=True))]

    return work


def error_in_greys(volume: np.ndarray, grid: Grid) -> float:
    """Of the volume fitted to the grid, against float64."""
    header = header_of(volume.shape, (1.0, 1.0, 1.0), "assumed")  # type: ignore[arg-type]
    how = {"mode": "bilinear", "antialias": True, "align_corners": False}
    planes = torch.stack(
        [
            functional.interpolate(torch.from_numpy(f[None, None].astype(np.float64)), grid.shape[1:], **how)[0, 0]
            for f in volume
        ]  # type: ignore[arg-type]
    )
    sheet = functional.interpolate(planes.flatten(1)[None, None], (grid.shape[0], planes[0].numel()), **how)  # type: ignore[arg-type]
    expected = sheet.reshape(grid.shape).numpy()
    return float(np.abs(put_on_grid(volume, header, grid).image * (255 / GREY) - expected).max())


def processor_seconds(work: Work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid()
    for shape, spacing_mm in SCANS.items():
        volume, header = layered_retina(*shape), header_of(shape, spacing_mm)
        works: dict[str, Work] = {"ours": lambda v=volume, h=header: put_on_grid(v, h, grid)}  # type: ignore[misc]
        if find_spec("monai"):
            works["monai"] = monais(volume, spacing_mm, grid)
        works["scipy"] = scipys(volume, spacing_mm, grid)
        best = dict.fromkeys(works, float("inf"))
        for _ in range(options.rounds):
            for name, work in works.items():
                best[name] = min(best[name], processor_seconds(work))
        others = "".join(f"   {n} x{best[n] / best['ours']:.1f}" for n in works if n != "ours")
        error = error_in_greys(volume, Grid((32, 96, 128)))
        print(f"{' x '.join(map(str, shape)):16} {best['ours']:.3f} s{others}   error {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
