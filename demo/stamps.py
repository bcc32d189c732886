"""Draws cells as small antialiased ellipses with chromatin, many at once, with numpy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from demo.cells import Cells
from demo.fields import TEXTURE_TEXELS, Field

BATCH_PIXELS = 2_000_000


def stamps(cells: Cells, mpp: float, grain: Field) -> Iterator[tuple[Cells, Field, Field, np.ndarray]]:
    """Batches of (cells, coverage `[N, S, S]`, shade `[N, S, S]`, top-left pixel `[N, 2]`) of equal stamp size S.

    Coverage is 0 to 1 (antialiased outline); shade multiplies a nucleus' stain (rim, chromatin, nucleolus). `grain` is
    a periodic texture for the chromatin.
    """
    sizes = 2 * np.ceil((1.15 * cells.long / mpp + 1.5) / 4).astype(int) * 4
    for size in np.unique(sizes):
        which = np.flatnonzero(sizes == size)
        step = max(1, BATCH_PIXELS // size**2)
        for i in range(0, len(which), step):
            part = cells.take(which[i : i + step])
            yield part, *_draw(part, int(size), mpp, grain)


def _draw(cells: Cells, size: int, mpp: float, grain: Field) -> tuple[Field, Field, np.ndarray]:
    corner = np.floor(np.stack([cells.y, cells.x], 1) / mpp).astype(np.int64) - size // 2
    offset = np.arange(size, dtype=np.float32) + 0.5
    dy = ((corner[:, :1] + offset) * mpp - cells.y[:, None]).astype(np.float32)[:, :, None]
    dx = ((corner[:, 1:] + offset) * mpp - cells.x[:, None]).astype(np.float32)[:, None, :]
    cos, sin, long, short = (
        a[:, None, None] for a in (np.cos(cells.angle), np.sin(cells.angle), cells.long, cells.short)
    )
    p, q = (cos * dy + sin * dx) / long, (cos * dx - sin * dy) / short
    bits = cells.seed[:, None, None]
    tilt, lobes = (bits & 255) * np.float32(np.pi / 128), ((bits >> 8) & 255) * np.float32(0.1 / 255)
    square = p * p + q * q
    radius = np.sqrt(square)
    # cos(2 and 3 times the angle) directly from p and q, to avoid arctan over millions of pixels
    safe = np.maximum(square, 1e-4)
    bumps = ((p * p - q * q) * np.cos(tilt) + 2 * p * q * np.sin(tilt)) / safe
    bumps += (p * p * p - 3 * p * q * q) * np.sin(tilt) / (safe * np.maximum(radius, 1e-2))
    inside = (1 - radius / (1 + lobes * bumps)) * np.sqrt(long * short)  # approximate distance to the outline in µm
    coverage = np.clip(inside / mpp + 0.5, 0, 1)
    shade = 1 - cells.rim[:, None, None] * np.clip(inside / 1.1, 0, 1)
    ys = ((bits[:, 0, 0] >> 4) & (TEXTURE_TEXELS - 1))[:, None] + _texels(size, mpp)
    xs = ((bits[:, 0, 0] >> 14) & (TEXTURE_TEXELS - 1))[:, None] + _texels(size, mpp)
    chromatin = grain[(ys & (TEXTURE_TEXELS - 1))[:, :, None], (xs & (TEXTURE_TEXELS - 1))[:, None, :]]
    shade += cells.clumps[:, None, None] * chromatin * 0.6
    spots = np.flatnonzero(cells.nucleolus)
    if len(spots):
        shade[spots] += _nucleoli(cells.take(spots), dy[spots], dx[spots])
    return coverage, np.maximum(shade, 0.15), corner


def _texels(size: int, mpp: float) -> np.ndarray:
    """Texel offsets; texels are 0.25 µm, so the chromatin's grain is the same at any resolution."""
    return np.floor(np.arange(size) * mpp / 0.25).astype(np.int64)


def _nucleoli(cells: Cells, dy: Field, dx: Field) -> Field:
    place = (((cells.seed >> 20) & 255) / 128 - 1)[:, None, None], (((cells.seed >> 24) & 255) / 128 - 1)[:, None, None]
    reach = 0.35 * cells.short[:, None, None]
    square = np.square(dy - place[0] * reach) + np.square(dx - place[1] * reach)
    return (0.75 * np.exp(-square / np.float32(0.9**2))).astype(np.float32)
