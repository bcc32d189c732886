"""Turns uint8 patches into views and crops, in batches on the device: each is one resampling of its image.

All randomness is in `draws`, uniforms that the reader adds to each unit (adios.data). So a unit looks the same on any
device and in any batch. Nothing waits for the device. Not here: masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adios.config import CropConfig, RunConfig, ViewConfig
from pathray.nn.scanner import simulate_scanner
from pathray.nn.stain import jitter_stain

OF_VIEW, OF_CROP = 16, 4  # uniforms: 5 of its place, 6 of its stain, 5 of its scanner; 4 of a crop's place
VIEWS = 2
SUPERSAMPLED = 2  # crops are sampled finer by this factor, then averaged


def count_draws(config: RunConfig) -> int:
    """The number of uniforms that the reader must add to each unit."""
    return VIEWS * OF_VIEW + config.num_masks * config.crops_per_mask * OF_CROP


def view(images: Tensor, draws: Tensor, config: ViewConfig) -> Tensor:
    """Images `[B, 3, S, S]` in 0…1, draws `[B, OF_VIEW]` -> `[B, 3, S, S]` in 0…1: a part of the image, rotated and
    flipped, with another stain and another scanner."""
    theta = view_place(draws[:, :5], config)
    out = resample(images, theta, images.shape[-1])
    if config.stain > 0:
        out = jitter_stain(out, draws[:, 5:11], config.stain)
    if config.scanner > 0:
        out = simulate_scanner(out, draws[:, 11:16], config.scanner)
    return out


def view_place(draws: Tensor, config: ViewConfig) -> Tensor:
    """Where views are: maps `[B, 2, 3]` from 5 uniforms each (flip, quarter turn, area, place)."""
    quarter = (4 * draws[:, 1]).floor() * (math.pi / 2)
    cos, sin = quarter.cos().round(), quarter.sin().round()
    flip = 1 - 2 * (draws[:, 0] < 0.5).to(draws.dtype)
    if not config.geometry:
        cos, sin, flip = torch.ones_like(cos), torch.zeros_like(sin), torch.ones_like(flip)
    return _place(cos, sin, flip, _side(draws[:, 2], config.scale), draws[:, 3:5])


def crop_place(draws: Tensor, config: CropConfig) -> Tensor:
    """Where crops are: maps `[M, 2, 3]` from OF_CROP uniforms each (angle, area, place)."""
    angle = (2 * draws[:, 0] - 1) * math.radians(config.rotation)
    side = _side(draws[:, 1], config.scale)
    return _place(angle.cos(), angle.sin(), torch.ones_like(angle), side, draws[:, 2:4])


def crops(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Images `[M, 3, S, S]`, maps `[M, 2, 3]` -> `[M, 3, size, size]`, each pixel the mean of finer samples."""
    fine = resample(images, theta, SUPERSAMPLED * size)
    return F.avg_pool2d(fine, SUPERSAMPLED)


def resample(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Images `[M, 3, S, S]` at the points of the maps `[M, 2, 3]`, bilinear, `[M, 3, size, size]`.

    A map takes output coordinates, −1 … 1 from edge to edge, (x, y, 1), to image coordinates; the image is mirrored
    beyond its edges. Equal to `torch.nn.functional.grid_sample`, which XLA would compute on the host. Coordinates use
    no matrix product: autocast would compute it in half precision, which is too coarse.
    """
    line = (torch.arange(size, device=images.device, dtype=images.dtype) * 2 + 1) / size - 1
    x, y = line[None, :], line[:, None]
    at = theta.to(images.dtype)[:, :, :, None, None]
    side, flat = images.shape[-1], images.flatten(2)
    (x0, x1, right), (y0, y1, below) = (
        _neighbours((at[:, i, 0] * x + at[:, i, 1] * y + at[:, i, 2]).flatten(1), side) for i in (0, 1)
    )

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * side + column)[:, None].expand(-1, flat.shape[1], -1))

    upper = torch.lerp(pixels(y0, x0), pixels(y0, x1), right)
    lower = torch.lerp(pixels(y1, x0), pixels(y1, x1), right)
    out: Tensor = torch.lerp(upper, lower, below).unflatten(2, (size, size))
    return out


def _neighbours(at: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after coordinates `[M, P]` (−1 … 1 over `side` pixels, mirrored beyond), int64, and the
    weight of the later one, `[M, 1, P]`."""
    place = ((at + 1) * (side / 2)).remainder(2 * side)
    place = (side - (place - side).abs() - 0.5).clamp(0, side - 1)
    before = place.floor()
    return before.long(), (before + 1).clamp(max=side - 1).long(), (place - before)[:, None]


def _side(draw: Tensor, scale: Sequence[float]) -> Tensor:
    """Side of a square with an area drawn between the shares `scale`; the image's side is 1."""
    low, high = scale
    return (low + (high - low) * draw).sqrt()


def _place(cos: Tensor, sin: Tensor, flip: Tensor, side: Tensor, place: Tensor) -> Tensor:
    """Rotated squares anywhere in the image; those that do not fit are centred and exceed its edges."""
    room = (1 - side * (cos.abs() + sin.abs())).clamp(min=0)
    x, y = ((2 * place[:, i] - 1) * room for i in (0, 1))
    rows = (
        torch.stack([side * cos * flip, -side * sin, x], dim=1),
        torch.stack([side * sin * flip, side * cos, y], dim=1),
    )
    return torch.stack(rows, dim=1)
