"""A folder of small slides with masks and their manifest, as files: for tests of index, anchors and jobs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write_slide(path: Path, width: int = 1024, height: int = 768, mpp: float | None = 0.5, levels: int = 2) -> Path:
    """A tiled JPEG TIFF: white with a pink square of a third of the slide in its middle; each level half the last."""
    import tifffile

    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = (190, 90, 160)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            density = (
                {} if mpp is None else {"resolution": (1e4 / (mpp * 2**level),) * 2, "resolutionunit": "CENTIMETER"}
            )
            data = np.ascontiguousarray(pixels[:: 2**level, :: 2**level])
            kind = {"subfiletype": 1} if level else {}
            writer.write(data, tile=(128, 128), compression="jpeg", photometric="rgb", **density, **kind)
    return path


def write_mask(path: Path, mask: npt.NDArray[np.uint8]) -> Path:
    """A mask as deflated tiled TIFF, or as PNG by its suffix."""
    if path.suffix == ".png":
        from PIL import Image

        Image.fromarray(mask).save(path)
    else:
        import tifffile

        tifffile.imwrite(path, mask, tile=(128, 128), compression="deflate")
    return path


def square_mask(width: int = 256, height: int = 192) -> npt.NDArray[np.uint8]:
    """255 in the middle third."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 255
    return mask


def write_manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """A CSV with the three columns that must be there and whatever else a row has."""
    columns = list(dict.fromkeys(["slide_id", "wsi_path", "mask_path", *(name for row in rows for name in row)]))
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def good_cohort(folder: Path, slides: int = 3) -> str:
    """`slides` good slides with masks (PNG and TIFF in turn) of two organs; the manifest's path."""
    rows = []
    for i in range(slides):
        write_slide(folder / f"slide{i}.tiff", width=1024 + 128 * i)
        mask = write_mask(folder / f"mask{i}.{('png', 'tiff')[i % 2]}", square_mask(256 + 32 * i))
        organ = ("lung", "skin")[i % 2]
        rows.append({"slide_id": f"s{i}", "wsi_path": f"slide{i}.tiff", "mask_path": mask.name, "organ": organ})
    return write_manifest(folder / "slides.csv", rows)


def speckled_cohort(folder: Path) -> str:
    """Two slides of 576² at 0.5 mpp and two organs, speckled so that there is something to learn; all of it tissue."""
    import tifffile

    rows = []
    for i, organ in enumerate(("lung", "colon")):
        generator = np.random.default_rng(i)
        coarse = generator.integers(60, 200, (24, 24, 3))
        pixels = np.kron(coarse, np.ones((24, 24, 1))) + generator.normal(0, 8, (576, 576, 3))
        with tifffile.TiffWriter(folder / f"{i}.tif") as f:
            f.write(pixels.clip(0, 255).astype(np.uint8), tile=(128, 128), compression="deflate", photometric="rgb")
        tifffile.imwrite(folder / f"{i}_mask.tif", np.full((72, 72), 255, np.uint8), tile=(64, 64))
        row = {"slide_id": f"s{i}", "wsi_path": f"{i}.tif", "mask_path": f"{i}_mask.tif", "mpp": 0.5, "organ": organ}
        rows.append(row)
    return write_manifest(folder / "slides.csv", rows)
