"""Random fields for painting tissue: smooth noise on a grid, periodic textures, and reading them at any pixel.

Lengths are µm. Not here: biology (demo.anatomy), colours (demo.scanner).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

TEXTURE_TEXELS = 1024


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], step: float) -> Field:
    """Gaussian noise `[h, w]` with mean 0, variance about 1, and features about `step` cells wide.

    Cubic B-spline weights over a coarse random grid, as two matrix products.
    """
    rows, columns = (_spline_weights(n, step) for n in shape)
    coarse = rng.standard_normal((rows.shape[1], columns.shape[1])).astype(np.float32)
    return (rows @ coarse @ columns.T) * np.float32(1.9)  # a B-spline keeps 0.53 of the standard deviation


def _spline_weights(n: int, step: float) -> Field:
    place = np.arange(n) / step
    first, t = np.floor(place).astype(int), place - np.floor(place)
    weights = np.zeros((n, first[-1] + 4), np.float32)
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for k, values in enumerate(basis):
        weights[np.arange(n), first + k] = values / 6
    return weights


def texture(rng: np.random.Generator, sigma: tuple[float, float]) -> Field:
    """Periodic Gaussian noise `[1024, 1024]`, mean 0, variance 1, smoothed by `sigma` texels along each axis."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal((TEXTURE_TEXELS, TEXTURE_TEXELS)).astype(np.float32)
    noise = gaussian_filter(noise, sigma, mode="wrap", truncate=3)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def streaks(noise: Field, dy: Field, dx: Field, reach: float, rounds: int = 4) -> Field:
    """`noise` `[h, w]` blurred along the directions (dy, dx), about 2^rounds · `reach` cells each way; variance 1.

    Line integral convolution (Cabral and Leedom 1993) by doubling: each round averages the points ahead and behind, at
    twice the distance of the previous round. The sign of the direction does not matter.
    """
    h, w = noise.shape
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
    out = noise
    for k in range(rounds):
        length = np.float32(reach * 2**k)
        sides = []
        for sign in (-length, length):
            rows = np.clip(y + sign * dy + 0.5, 0, h - 1).astype(np.int32)
            columns = np.clip(x + sign * dx + 0.5, 0, w - 1).astype(np.int32)
            sides.append(np.take(out.ravel(), rows * w + columns))
        out = sides[0] + sides[1]
    return ((out - out.mean()) / out.std()).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """Pixels of a rendering: centres at `ys`, `xs` (µm) over grids whose cell (j, i) has its centre at (j, i)·step."""

    ys: npt.NDArray[np.float64]
    xs: npt.NDArray[np.float64]
    step: float

    def read(self, grid: Field, finer: int = 1) -> Field:
        """A grid with cells of `step / finer`, interpolated linearly at every pixel `[len(ys), len(xs)]`."""
        row, fy = self._weights(self.ys * finer, grid.shape[0])
        column, fx = self._weights(self.xs * finer, grid.shape[1])
        below, above = grid[row], grid[row + 1]
        lines = below + (above - below) * fy[:, None]
        left = np.take(lines, column, axis=1)
        right = np.take(lines, column + 1, axis=1)
        right -= left
        right *= fx
        left += right
        return left

    def tile(self, table: Field, texel: float) -> Field:
        """A periodic texture with texels of `texel` µm at every pixel; fast, used for grain."""
        rows, columns = ((c / texel).astype(np.int64) & (TEXTURE_TEXELS - 1) for c in (self.ys, self.xs))
        return np.take(table[rows], columns, axis=1)

    def _weights(self, um: npt.NDArray[np.float64], n: int) -> tuple[npt.NDArray[np.int64], Field]:
        place = np.clip(um / self.step, 0, n - 1.001)
        cell = place.astype(np.int64)
        return cell, (place - cell).astype(np.float32)


def smoothstep(distance: Field, softness: float) -> Field:
    """A smooth step from 0 to 1 across the edge distance = 0, over ± `softness` µm."""
    t = np.clip(distance * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def ridge(distance: Field, width: float) -> Field:
    """1 on the line distance = 0, decreasing over `width` µm; for membranes and borders."""
    return np.exp(-np.square(distance * np.float32(1 / width)))


def scatter(rng: np.random.Generator, density: Field, step: float) -> npt.NDArray[np.float64]:
    """Points `[N, 2]` (y, x in µm) with `density` expected points per grid cell."""
    counts = rng.poisson(np.maximum(density, 0))
    cells = np.repeat(np.argwhere(counts > 0), counts[counts > 0], axis=0)
    return (cells + rng.random(cells.shape) - 0.5) * step


def thin_out(points: npt.NDArray[np.float64], distance: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of points that are `distance` µm apart: random sequential packing, in parallel rounds.

    In each round, a remaining point without an earlier-ranked remaining neighbour is kept, and its neighbours are
    removed.
    """
    from scipy.spatial import cKDTree

    n = len(points)
    if n == 0:
        return np.empty(0, np.int64)
    rank = rng.permutation(n)
    pairs = cKDTree(points).query_pairs(distance, output_type="ndarray")
    earlier = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    later = pairs.sum(1) - earlier
    kept, alive = np.zeros(n, bool), np.ones(n, bool)
    while alive.any():
        blocked = np.zeros(n, bool)
        blocked[later] = True
        chosen = alive & ~blocked
        kept |= chosen
        dead = np.zeros(n, bool)
        dead[later[chosen[earlier]]] = True
        alive &= ~(chosen | dead)
        live = alive[earlier] & alive[later]
        earlier, later = earlier[live], later[live]
    return np.flatnonzero(kept)


def sample(grid: npt.NDArray[np.generic], points: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.generic]:
    """Grid values `[N]` at the nearest cell of points `[N, 2]` (y, x in µm)."""
    cells = np.clip(np.rint(points / step).astype(int), 0, np.array(grid.shape) - 1)
    return grid[cells[:, 0], cells[:, 1]]
