"""Positions of tokens: sin-cos tables, resampled learned tables, rotary angles; in 2-D and 3-D, for any grid.

A grid that differs from the model's native grid samples the same field of view differently: coordinates are stretched
onto the native grid, so a model trained at one image size runs at any other. Not here: applying positions to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, ...]
Floats = npt.NDArray[np.float64]


def grid_coordinates(grid: Sequence[int], native: Sequence[int] | None = None) -> Floats:
    """Coordinates `[N, A]` of the tokens of `grid` in raster order (last axis fastest), in units of `native` tokens.

    Per axis (i + ½)·native/grid − ½, which aligns pixel centres; simply 0…n−1 if both grids are equal.
    """
    native = grid if native is None else native
    assert len(grid) == len(native), (grid, native)
    axes = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(grid, native, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def sincos(coordinates: Floats, dim: int) -> Floats:
    """Sin-cos positions (Vaswani et al. 2017, section 3.5), dimensions divided among the axes: `[N, A]` -> `[N, dim]`.

    Each axis has w = 2·⌊dim/2A⌋ dimensions, sin(ω x) then cos(ω x) with ω_i = 10000^(−2i/w); the remaining ones are 0.
    """
    axes = coordinates.shape[1]
    half = dim // (2 * axes)
    omega = 10000.0 ** (-np.arange(half) / max(half, 1))
    parts = []
    for a in range(axes):
        angles = coordinates[:, a, None] * omega
        parts += [np.sin(angles), np.cos(angles)]
    parts.append(np.zeros((len(coordinates), dim - 2 * half * axes)))
    return np.concatenate(parts, axis=1)


def sincos_2d(grid_h: int, grid_w: int, dim: int) -> Tensor:
    """Table `[grid_h·grid_w, dim]` float32: rows in the first half of the dimensions, columns in the second."""
    return sincos_table((grid_h, grid_w), dim)


def sincos_3d(grid_d: int, grid_h: int, grid_w: int, dim: int) -> Tensor:
    """Table `[grid_d·grid_h·grid_w, dim]` float32: a third of the dimensions each for depth, rows, columns."""
    return sincos_table((grid_d, grid_h, grid_w), dim)


def sincos_table(grid: Grid, dim: int, native: Grid | None = None, device: torch.device | None = None) -> Tensor:
    """Table `[N, dim]` float32 for `grid` of a model built for `native`. Cached: do not modify it."""
    return _sincos_table(tuple(grid), dim, tuple(native or grid), device or torch.device("cpu"))


@lru_cache(maxsize=16)
def _sincos_table(grid: Grid, dim: int, native: Grid, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a table made in inference mode cannot be used in training
        return torch.from_numpy(sincos(grid_coordinates(grid, native), dim).astype(np.float32)).to(device)


def resample_positions(table: Tensor, old_grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Resample a learned table `[N_old, D]` to another grid `[N_new, D]`, cubic along every axis.

    One small matrix per axis is differentiable, reproducible and fast on every device. PyTorch's own bicubic kernels
    are not: they use atomic additions on CUDA and go through the host on XLA.
    """
    old, new = tuple(old_grid), tuple(new_grid)
    assert len(old) == len(new) and table.shape[0] == int(np.prod(old)), (table.shape, old, new)
    if old == new:
        return table
    field = table.float().reshape(*old, -1)
    with torch.autocast(
        table.device.type, enabled=False
    ):  # half precision would shift tokens; XLA's autocast rejects tensordot
        for axis, (n, m) in enumerate(zip(old, new, strict=True)):
            if n != m:
                field = torch.tensordot(_cubic_weights(n, m, table.device), field, dims=([1], [axis])).movedim(0, axis)
    return field.reshape(-1, table.shape[1]).to(table.dtype)


@lru_cache(maxsize=64)
def _cubic_weights(old: int, new: int, device: torch.device) -> Tensor:
    """Weights `[new, old]` of old positions in new ones: cubic convolution as in `torch.nn.functional.interpolate`
    (a = −0.75, aligned centres, repeated borders)."""
    with torch.inference_mode(False), torch.no_grad():
        ones = torch.eye(old, dtype=torch.float64).reshape(old, 1, old, 1)
        columns = F.interpolate(ones, size=(new, 1), mode="bicubic", align_corners=False)
        return columns.reshape(old, new).T.to(device, torch.float32).contiguous()


class Rotary:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) with the head's dimensions divided among the axes.

    Each axis rotates ⌊Dh/2A⌋ pairs of dimensions by x·θ^(−i/pairs). Remaining pairs, and tokens without a position
    (cls, registers), are not rotated. Pair i is (dimension i, dimension i + Dh/2).
    """

    def __init__(self, head_dim: int, axes: int, theta: float = 100.0) -> None:
        assert head_dim % 2 == 0 and head_dim >= 2 * axes, (head_dim, axes)
        self.head_dim, self.axes, self.theta = head_dim, axes, theta

    def angles(self, grid: Grid, native: Grid | None = None, device: torch.device | None = None) -> Tensor:
        """Angles `[N, Dh/2]` float32 for every token of `grid`. Cached: do not modify them."""
        key = (tuple(grid), tuple(native or grid), self.head_dim, self.theta)
        assert len(key[0]) == self.axes, (grid, self.axes)
        return _rotary_angles(*key, device or torch.device("cpu"))


@lru_cache(maxsize=16)
def _rotary_angles(grid: Grid, native: Grid, head_dim: int, theta: float, device: torch.device) -> Tensor:
    coordinates = grid_coordinates(grid, native)
    axes = coordinates.shape[1]
    pairs = head_dim // (2 * axes)
    omega = theta ** (-np.arange(pairs) / pairs)
    angles = (coordinates[:, :, None] * omega).reshape(len(coordinates), axes * pairs)
    angles = np.pad(angles, ((0, 0), (0, head_dim // 2 - axes * pairs)))
    with torch.inference_mode(False):
        return torch.from_numpy(angles.astype(np.float32)).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of `x` `[B, N, H, Dh]` by `angles` `[N, Dh/2]` or `[B, N, Dh/2]`, computed in float32."""
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
