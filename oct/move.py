"""Moves volumes on the device: flips, and affine maps as three passes along one axis each. Static shapes, no host sync.

A pass interpolates linearly between two voxels of a line, so a map costs six look-ups per voxel instead of the eight of
trilinear sampling, and nothing that XLA computes on the host (as it does `grid_sample` in 3-D). Maps are invertible and
near the identity. Not here: which map (oct.augment).
"""

from __future__ import annotations

import torch
from torch import Tensor


def flip(x: Tensor, inside: Tensor, axis: int, chosen: Tensor) -> Tensor:
    """`[B, D, H, W]` with the image of the `chosen` `[B]` mirrored along an axis, inside its box `[B, 3, 2]`: the box
    stays where it is. Exact."""
    n = x.shape[1 + axis]
    at, (first, last) = torch.arange(n, device=x.device), inside[:, axis].T[..., None]
    mirrored = torch.where(chosen[:, None] & (at >= first) & (at < last), first + last - 1 - at, at)
    return _take(x, mirrored.long().view(-1, *[n if other == axis else 1 for other in range(3)]), axis)


def resample(x: Tensor, inside: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, D, H, W]` at the voxels A p + b (`[B, 3, 3]`, `[B, 3]`) of each place p, and a mask `[B, D, H, W]`: 1 where
    that is inside the image's box `[B, 3, 2]`, else 0; there the volume is 0, too.

    Along x, then y, then z (Catmull and Smith 1980): each pass has the lines of the axes that are not yet moved.
    """
    low, high = inside[..., 0].to(torch.float32), inside[..., 1].to(torch.float32) - 1
    mask = torch.ones((), device=x.device)
    for axis in range(3):
        at = _coordinates(torch.cat([a[:, axis], b[:, axis, None]], dim=1), x.shape[1:])
        lo, hi = (limit[:, axis].view(-1, 1, 1, 1) for limit in (low, high))
        mask = mask * ((at >= lo - 0.5) & (at < hi + 0.5)).to(torch.float32)
    for axis, coefficients in zip((2, 1, 0), passes(a, b), strict=True):
        at = _coordinates(coefficients, x.shape[1:])
        x = _interpolate(x, at, axis, low[:, axis], high[:, axis])
    return x * mask, mask


def passes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients `[B, 4]` of (z, y, x, 1) that give the coordinate to read at, in the passes along x, y and z.

    With q = A p + b, the pass along z reads q_z. That along y knows z = q_z instead of p_z, which it solves for; that
    along x knows z and y.
    """
    last = torch.cat([a[:, 0], b[:, :1]], dim=1)
    r = a[:, 1, 0] / a[:, 0, 0]
    middle = torch.stack([r, a[:, 1, 1] - r * a[:, 0, 1], a[:, 1, 2] - r * a[:, 0, 2], b[:, 1] - r * b[:, 0]], dim=1)
    determinant = a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0]
    u = (a[:, 2, 0] * a[:, 1, 1] - a[:, 2, 1] * a[:, 1, 0]) / determinant
    v = (a[:, 2, 1] * a[:, 0, 0] - a[:, 2, 0] * a[:, 0, 1]) / determinant
    first = torch.stack(
        [u, v, a[:, 2, 2] - u * a[:, 0, 2] - v * a[:, 1, 2], b[:, 2] - u * b[:, 0] - v * b[:, 1]], dim=1
    )
    return first, middle, last


def _coordinates(coefficients: Tensor, shape: torch.Size) -> Tensor:
    """`[B, D, H, W]`: the coefficients `[B, 4]` applied to (z, y, x, 1) of every voxel."""
    out = coefficients[:, 3].view(-1, 1, 1, 1)
    for axis, n in enumerate(shape):
        at = torch.arange(n, device=coefficients.device, dtype=torch.float32)
        row = coefficients[:, axis, None] * at
        out = out + row.view(-1, *[n if other == axis else 1 for other in range(3)])
    return out


def _interpolate(x: Tensor, at: Tensor, axis: int, low: Tensor, high: Tensor) -> Tensor:
    """Values of lines along an axis at coordinates `at` `[B, D, H, W]`, linear; beyond `low` … `high` `[B]` those of
    the ends."""
    first, last = (limit.view(-1, 1, 1, 1) for limit in (low, high))
    at = torch.minimum(torch.maximum(at, first), last)
    before = at.floor()
    after = torch.minimum(before + 1, last)
    return torch.lerp(_take(x, before.long(), axis), _take(x, after.long(), axis), at - before)


def _take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.gather(1 + axis, index.expand(x.shape))
