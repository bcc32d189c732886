"""Turns volumes of a grid into encoder inputs, in batches on the device: normalised over the image, moved, with noise.

All randomness is in `draws`, uniforms that the reader adds to each unit: a volume looks the same on any device, in any
batch and on any rank. Context and targets are tokens of one augmented volume, so positions correspond. What is no image
is 0 before and after. Not here: reading onto the grid (oct.data), resampling (oct.move).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from oct.config import AugmentConfig, RunConfig
from oct.move import flip, resample
from oct.volume import GREY

FLIPS, CROP, SHIFT, ANGLES, MOVE, SCALE, NOISE = (
    slice(0, 2),
    slice(2, 3),
    slice(3, 6),
    slice(6, 9),
    slice(9, 12),
    slice(12, 15),
    slice(15, 17),
)
FLAT = 1e-6  # of the range: a volume with a smaller deviation has no content


def count_draws(config: RunConfig) -> int:
    """The number of uniforms that the reader must add to each unit. The same whatever is switched on."""
    return NOISE.stop


class Volumes:
    """Turns the volumes of a micro-batch into float tensors. Has no state."""

    def __init__(self, config: AugmentConfig, spacing_mm: Sequence[float]) -> None:
        self.config, self.spacing_mm = config, tuple(spacing_mm)

    def __call__(self, image: Tensor, inside: Tensor, draws: Tensor | None = None) -> Tensor:
        """image int16 `[B, D, H, W]`, inside int32 `[B, 3, 2]`, draws `[B, N]` -> float32 `[B, 1, D, H, W]`.

        Without draws the volume is only normalised: for validation and inference.
        """
        with torch.autocast(image.device.type, enabled=False):
            x = normalise(image, inside)
            return (x if draws is None else self._augment(x, inside, draws)).unsqueeze(1)

    def _augment(self, x: Tensor, inside: Tensor, draws: Tensor) -> Tensor:
        config, is_inside = self.config, box_mask(inside, x.shape[1:])
        for axis, wanted, draw in zip((0, 2), (config.flip_slow, config.flip_lr), draws[:, FLIPS].T, strict=True):
            if wanted:
                x = flip(x, inside, axis, draw < 0.5)
        if config.degrees or config.translate or config.scale or min(config.crop) < 1:
            x, is_inside = resample(x, inside, *place(draws, inside, self.spacing_mm, config))
        if config.noise:
            x = x + config.noise * is_inside * normal_noise(draws[:, NOISE], x.shape[1:])
        return x


def normalise(image: Tensor, inside: Tensor) -> Tensor:
    """int16 `[B, D, H, W]` -> float32: (value − mean) / standard deviation of each volume's voxels inside its box
    `[B, 3, 2]`, and exactly 0 outside of it. A volume of one value is 0 everywhere."""
    mask = box_mask(inside, image.shape[1:])
    x, axes = image.to(torch.float32) / GREY, (1, 2, 3)
    count = mask.sum(dim=axes, keepdim=True).clamp(min=1)
    centred = (x - (x * mask).sum(dim=axes, keepdim=True) / count) * mask
    std = (centred.square().sum(dim=axes, keepdim=True) / count).sqrt()
    return centred * torch.where(std > FLAT, 1 / std.clamp(min=FLAT), 0.0)


def box_mask(inside: Tensor, shape: Sequence[int]) -> Tensor:
    """float32 `[B, D, H, W]`: 1 for voxels inside the box `[B, 3, 2]`, else 0."""
    out = torch.ones((), device=inside.device)
    for axis, n in enumerate(shape):
        at, (first, last) = torch.arange(n, device=inside.device), inside[:, axis].T[..., None]
        within = ((at >= first) & (at < last)).to(torch.float32)
        out = out * within.view(-1, *[n if other == axis else 1 for other in range(3)])
    return out


def place(draws: Tensor, inside: Tensor, spacing_mm: Sequence[float], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Maps A `[B, 3, 3]`, b `[B, 3]` from voxels of the new volume to voxels of the old one, A p + b.

    About the image's centre: a rotation in mm by three angles, a scale per axis, and a part of the image between the
    shares `crop` that fills the grid, anywhere in it; then a shift.
    """
    mm = torch.tensor(spacing_mm).to(draws.device, non_blocking=True)
    box = inside.to(torch.float32)
    centre, extent = (box.sum(dim=2) - 1) / 2, box[..., 1] - box[..., 0]
    low, high = config.crop
    zoom = low + (high - low) * draws[:, CROP]
    factor = zoom * (1 + config.scale * _signed(draws[:, SCALE]))
    turn = rotation(math.radians(config.degrees) * _signed(draws[:, ANGLES]))
    a = turn * mm / mm[:, None] * factor[:, None]
    shift = _signed(draws[:, SHIFT]) * (1 - zoom) / 2 + _signed(draws[:, MOVE]) * config.translate
    return a, centre + shift * extent - (a * centre[:, None]).sum(dim=2)


def rotation(angles: Tensor) -> Tensor:
    """Rotations `[B, 3, 3]` by angles `[B, 3]` (radians) about the axes z, y, x, one after the other."""
    one, zero = torch.ones_like(angles[:, 0]), torch.zeros_like(angles[:, 0])
    (cz, cy, cx), (sz, sy, sx) = angles.cos().T, angles.sin().T
    rows = (
        ((one, zero, zero), (zero, cz, -sz), (zero, sz, cz)),
        ((cy, zero, -sy), (zero, one, zero), (sy, zero, cy)),
        ((cx, -sx, zero), (sx, cx, zero), (zero, zero, one)),
    )
    about = [torch.stack([torch.stack(row, dim=1) for row in matrix], dim=1) for matrix in rows]
    return _multiply(about[2], _multiply(about[1], about[0]))


def normal_noise(draws: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal values `[B, *shape]`, a function of two uniforms `[B, 2]` and the place in the volume alone.

    A counter-based generator: the finaliser of MurmurHash3 (Appleby 2011) over voxel and key, then Box and Muller. No
    generator's state, so no rank, batch or device changes a volume.
    """
    size = math.prod(shape)
    keys = (draws * 2**24).to(torch.int32)
    counter = torch.arange(-(-size // 2), dtype=torch.int32, device=draws.device)
    first = mix(mix(counter ^ mix(keys[:, :1])) ^ keys[:, 1:])
    second = mix(first ^ 0x5BD1E995)
    radius = (-2 * ((_top_bits(first) + 0.5) / 2**24).log()).sqrt()
    angle = 2 * math.pi * _top_bits(second) / 2**24
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size].view(-1, *shape)


def mix(x: Tensor) -> Tensor:
    """MurmurHash3's finaliser of int32 words, bit by bit that of unsigned ones."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    x = (x ^ ((x >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _top_bits(x: Tensor) -> Tensor:
    """The upper 24 bits of int32 words as float32, exactly."""
    return ((x >> 8) & 0xFFFFFF).to(torch.float32)


def _signed(draws: Tensor) -> Tensor:
    return 2 * draws - 1


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Products `[B, 3, 3]` in full precision: a matrix product may be rounded to TF32 or bf16."""
    return (a[:, :, :, None] * b[:, None]).sum(dim=2)
