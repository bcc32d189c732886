"""Small slides and masks for tests: pyramidal TIFFs in every compression the direct path reads; ways to damage them.

Deterministic: the same arguments give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage

CODECS = (
    "jpeg",
    "jpeg_rgb",
    "jp2k_33003",
    "jp2k_33005",
    "jp2k",
    "deflate",
    "deflate_predictor",
    "lzw",
    "lzw_predictor",
    "none",
)
LOSSLESS = ("deflate", "deflate_predictor", "lzw", "lzw_predictor", "none")
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "wsi"


def tissue_image(width: int, height: int, seed: int = 0) -> np.ndarray:
    """H&E-like RGB ``[height, width, 3]``: pale ground, one large stained area in the middle, nuclei, sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wobble = _smooth(rng, height, width, max(8, min(width, height) // 8))
    inside = ((x / width - 0.5) / 0.36) ** 2 + ((y / height - 0.5) / 0.36) ** 2 + 0.35 * wobble < 1
    stroma = np.array([222, 140, 190]) + 14 * _smooth(rng, height, width, 16)[..., None]
    nuclei = _smooth(rng, height, width, 6) > 1.1
    image = np.where(inside[..., None], stroma, np.array([243, 241, 244]))
    image = np.where((inside & nuclei)[..., None], np.array([96, 60, 140]), image)
    return np.clip(image + rng.normal(0, 2.5, (height, width, 1)), 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """Gaussian noise with unit variance and structures of about `sigma` pixels."""
    step = max(1, int(sigma // 2))
    coarse = ndimage.gaussian_filter(rng.standard_normal((-(-height // step) + 1, -(-width // step) + 1)), sigma / step)
    fine = np.kron(coarse, np.ones((step, step)))[:height, :width]
    return (fine / fine.std()).astype(np.float32)


def reduced(image: np.ndarray, by: int) -> np.ndarray:
    """Block means; what does not fill a block is cut off, as scanners do."""
    h, w = image.shape[0] // by, image.shape[1] // by
    blocks = image[: h * by, : w * by].reshape(h, by, w, by, *image.shape[2:])
    return (blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def write_slide(
    path: str | os.PathLike[str],
    *,
    width: int = 900,
    height: int = 700,
    tile: int = 256,
    downsamples: Sequence[int] = (1, 2, 4),
    mpp: float | None = 0.5,
    codec: str = "jpeg",
    quality: int = 85,
    kind: str = "generic",
    planar: bool = False,
    byteorder: str = "<",
    bigtiff: bool = False,
    seed: int = 0,
    image: np.ndarray | None = None,
) -> Path:
    """A tiled pyramid. `kind`: ``generic`` (pages in a row, spacing in tags), ``subifds``, ``svs`` (Aperio text in the
    description, spacing there, a striped thumbnail as second page), ``ome`` (SubIFDs, spacing in OME-XML)."""
    settings = {
        "tile": tile, "downsamples": tuple(downsamples), "mpp": mpp, "codec": codec, "quality": quality, "kind": kind,
        "planar": planar, "byteorder": byteorder, "bigtiff": bigtiff,
    }  # fmt: skip
    path = Path(path)
    path.write_bytes(_painted(width, height, seed, **settings) if image is None else _pyramid(image, **settings))
    return path


@lru_cache(maxsize=48)  # many tests write the same few slides
def _painted(width: int, height: int, seed: int, **settings: Any) -> bytes:
    return _pyramid(tissue_image(width, height, seed), **settings)


def _pyramid(
    base: np.ndarray,
    *,
    tile: int,
    downsamples: Sequence[int],
    mpp: float | None,
    codec: str,
    quality: int,
    kind: str,
    planar: bool,
    byteorder: str,
    bigtiff: bool,
) -> bytes:
    """The file's bytes."""
    height, width = base.shape[:2]
    levels = [base if d == 1 else reduced(base, d) for d in downsamples]
    common = {**_codec(codec, quality), "tile": (tile, tile), "metadata": None}
    if planar:
        levels = [np.ascontiguousarray(np.moveaxis(level, 2, 0)) for level in levels]
        common["planarconfig"] = "separate"
    nested, file = kind in ("subifds", "ome"), BytesIO()
    with tifffile.TiffWriter(file, bigtiff=bigtiff, byteorder=byteorder, ome=kind == "ome") as tiff:
        for i, level in enumerate(levels):
            options: dict[str, Any] = dict(common)
            if mpp is not None and kind in ("generic", "subifds"):
                options |= {"resolution": (10000 / mpp / downsamples[i],) * 2, "resolutionunit": "CENTIMETER"}
            if kind == "svs":
                options |= _aperio(width, height, level, tile, mpp, first=i == 0)
            if kind == "ome" and i == 0:
                options["metadata"] = {"axes": "YXS", **_ome_size(mpp)}
            if i == 0 and nested:
                options["subifds"] = len(levels) - 1
            if i > 0 and kind != "svs":
                options["subfiletype"] = 1
            tiff.write(ycbcr(level) if codec == "jp2k_33003" else level, **options)
            if i == 0 and kind == "svs":
                _thumbnail(tiff, base, width, height)
    return file.getvalue()


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    """RGB uint8 ``[h, w, 3]`` → YCbCr of full range (ITU-R BT.601, as in JFIF), in float64 and rounded."""
    r, g, b = np.moveaxis(rgb.astype(np.float64), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    found = np.stack([y, (b - y) / 1.772 + 128, (r - y) / 1.402 + 128], axis=2)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def _codec(codec: str, quality: int) -> dict[str, Any]:
    if codec.startswith("jpeg"):  # "rgb" is what comes in; stored is YCbCr unless said otherwise
        stored = {"outcolorspace": "RGB"} if codec == "jpeg_rgb" else {}
        subsampling = {} if codec == "jpeg_rgb" else {"subsampling": (2, 2)}
        return {
            "compression": "jpeg",
            "compressionargs": {"level": quality, **stored},
            "photometric": "rgb",
            **subsampling,
        }
    if codec.startswith("jp2k"):
        code = int(codec.split("_")[1]) if "_" in codec else 34712
        return {"compression": code, "compressionargs": {"level": 40, "mct": False}, "photometric": "rgb"}
    name, _, predictor = codec.partition("_")
    return {"compression": None if name == "none" else name, "predictor": bool(predictor), "photometric": "rgb"}


def _aperio(width: int, height: int, level: np.ndarray, tile: int, mpp: float | None, *, first: bool) -> dict[str, Any]:
    size = f"{width}x{height} [0,0 {width}x{height}]" if first else f"{width}x{height}"
    reduction = "" if first else f" -> {level.shape[1]}x{level.shape[0]}"
    spacing = "" if mpp is None else f"|AppMag = 20|MPP = {mpp:.4f}"
    text = f"Aperio Image Library v11.2.1 \r\n{size} ({tile}x{tile}){reduction} JPEG/RGB Q=85{spacing}"
    return {"description": text}


def _thumbnail(tiff: tifffile.TiffWriter, base: np.ndarray, width: int, height: int) -> None:
    small = reduced(base, max(1, width // 200))
    text = f"Aperio Image Library v11.2.1 \r\n{width}x{height} -> {small.shape[1]}x{small.shape[0]} - "
    tiff.write(small, compression="jpeg", photometric="rgb", description=text, metadata=None)


def _ome_size(mpp: float | None) -> dict[str, Any]:
    if mpp is None:
        return {}
    return {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}


def write_mask(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    *,
    downsamples: Sequence[int] = (1,),
    tile: int | None = 256,
    codec: str = "deflate",
    mpp: float | None = None,
) -> Path:
    """A mask ``[h, w]``: TIFF (levels by taking every n-th pixel; `tile` None: strips) or, by suffix, PNG or JPEG."""
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        from PIL import Image

        Image.fromarray(mask).save(path)
        return path
    with tifffile.TiffWriter(path) as tiff:
        for i, d in enumerate(downsamples):
            options: dict[str, Any] = {"metadata": None, "compression": None if codec == "none" else codec}
            if tile is not None:
                options["tile"] = (tile, tile)
            if mpp is not None:
                options |= {"resolution": (10000 / mpp / d,) * 2, "resolutionunit": "CENTIMETER"}
            h, w = mask.shape[0] // d, mask.shape[1] // d
            tiff.write(np.ascontiguousarray(mask[::d, ::d][:h, :w]), subfiletype=int(i > 0), **options)
    return path


def tile_range(path: str | os.PathLike[str], page: int, index: int) -> tuple[int, int]:
    """(offset, bytes) of one tile in the file."""
    with tifffile.TiffFile(path) as tiff:
        return int(tiff.pages[page].dataoffsets[index]), int(tiff.pages[page].databytecounts[index])


def set_tile_bytes(path: str | os.PathLike[str], page: int, index: int, count: int) -> None:
    """Overwrite the byte count of one tile: 0 makes it sparse, fewer than it has truncates it."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[page].tags["TileByteCounts"]
        counts = [tag.value] if isinstance(tag.value, int) else list(tag.value)
        counts[index] = count
        tag.overwrite(counts, dtype=tag.dtype)


def truncate_tile(path: str | os.PathLike[str], page: int, index: int, keep: float = 0.5) -> None:
    """Let one tile's data end after the share `keep` of its bytes."""
    set_tile_bytes(path, page, index, int(tile_range(path, page, index)[1] * keep))


def garble_tile(path: str | os.PathLike[str], page: int, index: int) -> None:
    """Overwrite one tile's data with zeros, as a hole in a badly copied file."""
    offset, count = tile_range(path, page, index)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def cut_file(path: str | os.PathLike[str], page: int, index: int) -> None:
    """End the file in the middle of one tile."""
    offset, count = tile_range(path, page, index)
    os.truncate(path, offset + count // 2)
