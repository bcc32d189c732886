"""Generated retinas that differ as eyes and scans do, with the layer of every voxel: for learning and for its probes.

Layers of varying thickness and grey lie under a curved, tilted surface at any depth. Each scan has a contrast of its
own, vessels that cast shadows, light that fades with depth, and speckle. Not here: one fixed retina (retina.py), DICOM.
"""

from __future__ import annotations

import numpy as np

from oct.volume import GREY
from pathray.data.order import rng
from tests.builders.oct.retina import CHOROID, LAYERS, VITREOUS

NAMES = ("vitreous", "nerve fibres", "inner plexiform", "inner nuclear", "outer nuclear", "segments", "epithelium",
         "choroid")  # fmt: skip
DEPTH = 0.45  # of the retina, as a part of the rows, on average


def varied_retina(number: int, shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(image int16 `[D, H, W]` of 0 … GREY, layer int8 `[D, H, W]`, a place in `NAMES`) of retina `number`."""
    g = rng(seed, "retina", number)
    surface, bottoms = _boundaries(g, shape)
    row = np.arange(shape[1])[None, :, None]
    layer = (row >= surface[:, None]).astype(np.int8)
    for bottom in bottoms:
        layer += row >= bottom[:, None]
    greys = np.array([VITREOUS, *(grey for _, grey in LAYERS), CHOROID]) + g.normal(0, 0.08, len(NAMES))
    image = np.clip(greys, 0.01, 1)[layer] ** g.uniform(0.6, 1.7)
    below = np.maximum(row - surface[:, None], 0) / shape[1]
    image *= np.exp(-g.uniform(0, 1.2) * below) * np.where(below > 0, _shadows(g, shape)[:, None], 1)
    speckle = g.standard_normal(shape, np.float32)
    image = image * (1 + g.uniform(0.3, 0.6) * speckle) + 0.04 * g.standard_normal(shape, np.float32)
    return np.rint(np.clip(image * g.uniform(0.6, 1.0), 0, 1) * GREY).astype(np.int16), layer


def token_layers(layer: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """`[N]`: the layer that most voxels of each patch belong to, in raster order."""
    d, h, w = (n // p for n, p in zip(layer.shape, patch, strict=True))
    split = layer.reshape(d, patch[0], h, patch[1], w, patch[2]).transpose(0, 2, 4, 1, 3, 5).reshape(d * h * w, -1)
    return np.stack([(split == k).sum(axis=1) for k in range(len(NAMES))], axis=1).argmax(axis=1)


def _boundaries(g: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The rows of the surface `[D, W]`, and of the lower side of each layer."""
    frames, rows, columns = shape
    z, x = np.meshgrid(np.linspace(-1, 1, frames), np.linspace(-1, 1, columns), indexing="ij")
    middle_z, middle_x = g.uniform(-0.5, 0.5, 2)
    pit = np.exp(-((z - middle_z) ** 2 + (x - middle_x) ** 2) / g.uniform(0.1, 0.4))
    tilt_z, tilt_x = g.uniform(-0.06, 0.06, 2)
    surface = g.uniform(0.06, 0.42) + g.uniform(0, 0.1) * pit + tilt_z * z + tilt_x * x
    depth = DEPTH * g.uniform(0.85, 1.15) * (1 - g.uniform(0, 0.2) * pit)
    parts = np.array([0.6 * part + 0.4 / len(LAYERS) for part, _ in LAYERS]) * np.exp(g.normal(0, 0.2, len(LAYERS)))
    ends = np.cumsum(parts / parts.sum())
    return rows * surface, [rows * (surface + depth * end) for end in ends]


def _shadows(g: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """`[D, W]`: what vessels leave of the light, along slanted lines through the frames."""
    frames, _, columns = shape
    z, x = np.meshgrid(np.arange(frames) / frames, np.arange(columns) / columns, indexing="ij")
    light = np.ones((frames, columns))
    for _ in range(g.integers(1, 5)):
        away = np.abs(x - g.random() - g.uniform(-0.5, 0.5) * (z - 0.5))
        light *= 1 - g.uniform(0.3, 0.7) * np.exp(-((away / g.uniform(0.01, 0.03)) ** 2))
    return light
