"""Small inputs for the examples, so that each runs without any file: slides, an encoder, labelled patches.

They are painted, not collected, and equal on every machine. Nothing can be concluded from what is learned on them.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image

from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact import EncoderArtifact

STAINS = {"north": np.array([206, 130, 180]), "south": np.array([226, 150, 160])}  # of the stroma, by centre


def slide(path: Path, *, centre: str = "north", seed: int = 0, size: int = 1280) -> Path:
    """A pyramid of two levels, 0.5 µm per pixel: a round piece of tissue on a pale ground. One that is there stays."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:size, :size] / size - 0.5
    thick = 1 + 0.25 * np.sin(9 * x + seed) * np.cos(7 * y)  # where the section is thicker, it is darker
    pixels = paint(size, STAINS[centre] * (2 - thick[..., None]), nuclei=size * size // 700, seed=seed)
    pixels[x * x + y * y > 0.16] = (243, 241, 244)
    with tifffile.TiffWriter(path) as tiff:
        for level in (0, 1):
            tiff.write(
                np.ascontiguousarray(pixels[:: 2**level, :: 2**level]),
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                subfiletype=level,
                resolution=(1e4 / 0.5 / 2**level,) * 2,  # pixels per centimetre: what says the spacing
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def slides(folder: Path, count: int = 2) -> Path:
    """A manifest of `count` slides of two centres."""
    rows = []
    for i in range(count):
        centre = list(STAINS)[i % 2]
        path = slide(folder / f"slide_{i}.tiff", centre=centre, seed=i)
        rows.append({"slide_id": f"slide_{i}", "wsi_path": path.name, "mask_path": "", "organ": "skin", "site": centre})
    return _write(folder / "slides.csv", rows)


def patches(folder: Path, slides_per_class: int = 4, patches_per_slide: int = 6) -> Path:
    """A manifest of labelled patches: two classes that differ in the number of nuclei, two centres in their stain."""
    rows, rng = [], np.random.default_rng(0)
    for centre, stain in STAINS.items():
        for label, nuclei in (("benign", 14), ("tumour", 22)):
            for s in range(slides_per_class):
                own = np.add(stain, rng.normal(0, 6, 3))  # no two slides are stained alike
                for p in range(patches_per_slide):
                    name = f"{centre}-{label}-{s}"
                    pixels = paint(64, own, nuclei=rng.poisson(nuclei), seed=len(rows))
                    Image.fromarray(pixels).save(folder / f"{name}-{p}.png")
                    where = {"image_path": f"{name}-{p}.png", "slide_id": name}
                    rows.append({**where, "label": label, "medical_center": centre})
    return _write(folder / "patches.csv", rows)


def encoder(folder: Path, size: int = 64) -> Path:
    """An encoder that nobody has trained, for tiles of `size` pixels of 1 µm."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(img_size=(size, size), patch_size=(16, 16), dim=96, depth=2, heads=3))
    preprocessing = {"mean": [0.7, 0.55, 0.7], "std": [0.2, 0.25, 0.2], "size": size, "mpp": 1.0}
    EncoderArtifact.save(str(folder), vit, preprocessing=preprocessing, science="example", provenance={})
    return folder


def paint(size: int, stain: npt.ArrayLike, *, nuclei: int, seed: int) -> np.ndarray:
    """uint8 ``[size, size, 3]``: stroma of that colour (one, or one per pixel), dark round nuclei, noise."""
    rng = np.random.default_rng(seed)
    pixels = np.array(np.broadcast_to(stain, (size, size, 3)), np.float64)
    y, x = np.mgrid[-4:5, -4:5]
    disc = np.argwhere(x * x + y * y <= 16) - 4
    for centre in rng.integers(0, size, (nuclei, 2)):
        at = np.clip(centre + disc, 0, size - 1)
        pixels[at[:, 0], at[:, 1]] = (96, 60, 140)
    return np.clip(pixels + rng.normal(0, 6, (size, size, 1)), 0, 255).astype(np.uint8)


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
