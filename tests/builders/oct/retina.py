"""A generated retina: flat-bottomed layers of known thickness and grey under a curved surface. Not here: DICOM."""

from __future__ import annotations

import numpy as np

LAYERS = (  # part of the retina's depth, grey of 0 … 1: nerve fibres, …, photoreceptors, pigment epithelium
    (0.15, 0.80),
    (0.20, 0.50),
    (0.15, 0.30),
    (0.30, 0.45),
    (0.05, 0.20),
    (0.15, 0.95),
)
VITREOUS, CHOROID = 0.05, 0.15
DEPTH = 0.4  # of the retina, as a part of the rows
SURFACE = 0.2  # the highest row of the surface, as a part of the rows


def layered_retina(
    frames: int, rows: int, columns: int, *, bits: int = 8, shift_rows: int = 0, noise: float = 0.03, seed: int = 0
) -> np.ndarray:
    """`[frames, rows, columns]` uint8, or uint16 of `bits` stored bits. `shift_rows` moves the whole retina down.

    Every frame differs from every other, in its surface and in the brightness of a bar at its left edge.
    """
    limit = (1 << bits) - 1
    row = np.arange(rows)[None, :, None]
    depth = (row - surface_rows(frames, rows, columns)[:, None, :] - shift_rows) / (DEPTH * rows)
    image = np.full((frames, rows, columns), VITREOUS, np.float32)
    top = 0.0
    for thickness, grey in LAYERS:
        image[(depth >= top) & (depth < top + thickness)] = grey
        top += thickness
    image[depth >= top] = CHOROID
    image[:, :, : max(1, columns // 16)] = ((np.arange(frames) + 1) / (frames + 1))[:, None, None]
    image += np.random.default_rng(seed).normal(0, noise, image.shape).astype(np.float32)
    return np.rint(np.clip(image, 0, 1) * limit).astype(np.uint8 if bits <= 8 else np.uint16)


def surface_rows(frames: int, rows: int, columns: int) -> np.ndarray:
    """`[frames, columns]`: the row of the retina's surface, a bowl that is deepest in the middle of the scan."""
    z = np.linspace(-1, 1, frames)[:, None] if frames > 1 else np.zeros((1, 1))
    x = np.linspace(-1, 1, columns)[None, :]
    return np.asarray(rows * (SURFACE + 0.1 * np.exp(-(z**2 + x**2) / 0.3)))
