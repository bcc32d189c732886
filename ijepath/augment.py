"""Turns uint8 pixels into encoder inputs, in batches on the device: normalisation, stain, scanner, brightness.

All randomness is in `draws`, uniforms that the reader adds to each unit (ijepath.data). So a unit looks the same on any
device and in any batch. Not here: geometry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ijepath.config import AugmentConfig
from pathray.nn.scanner import blur, simulate_scanner
from pathray.nn.stain import STAINS, constant, density, jitter_stain

__all__ = ["STAINS", "Pixels", "blur", "constant", "density", "jitter_stain", "simulate_scanner"]

TISSUE_DENSITY = 0.15  # a pixel above this mean optical density counts as tissue
BANDS = 4
# Standard deviation of each luminance octave, as a ratio to the coarsest, finest first: roughly H&E at 0.5–1 mpp.
REFERENCE_SPECTRUM = (0.8, 0.95, 1.05, 1.0)
_STAIN, _SCANNER = slice(0, 6), slice(6, 11)


class Pixels:
    """Turns the images of a micro-batch into float tensors. Has no state."""

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        self.config = config
        self._mean, self._std = tuple(mean), tuple(std)

    def __call__(self, context: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """context uint8 [B, S, S, 3], targets uint8 [B, K, h, w, 3], draws [B, 2, D] → float32 [B, 3, S, S] and
        [B·K, 3, h, w], normalised."""
        own = draws[:, 1] if self.config.independent else draws[:, 0]
        each = own.repeat_interleave(targets.shape[1], dim=0)
        with torch.autocast(context.device.type, enabled=False):
            return self.images(context, draws[:, 0]), self.images(targets.flatten(0, 1), each)

    def images(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] → float32 [N, 3, H, W]."""
        x, config = pixels.movedim(-1, 1).to(torch.float32) / 255.0, self.config
        if config.normalise_brightness:
            x = normalise_brightness(x, config.brightness_reference)
        if config.normalise_frequency > 0:
            x = normalise_frequency(x, config.normalise_frequency)
        if config.stain > 0:
            x = jitter_stain(x, draws[:, _STAIN], config.stain)
        if config.scanner > 0:
            x = simulate_scanner(x, draws[:, _SCANNER], config.scanner)
        mean, std = constant(self._mean, x.device), constant(self._std, x.device)
        return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def normalise_brightness(x: Tensor, reference: float) -> Tensor:
    """Scale optical density so that its mean over tissue is `reference`, by a factor in 0.5…2. x is in 0…1."""
    od = density(x)
    mean = od.mean(dim=1, keepdim=True)
    tissue = (mean > TISSUE_DENSITY).to(x.dtype)
    count = tissue.sum(dim=(2, 3), keepdim=True)
    level = (mean * tissue).sum(dim=(2, 3), keepdim=True) / count.clamp(min=1)
    factor = torch.where(count > 0, (reference / level.clamp(min=1e-3)).clamp(0.5, 2.0), torch.ones_like(level))
    return torch.exp(-od * factor)


def normalise_frequency(x: Tensor, strength: float) -> Tensor:
    """Bring the contrast of the fine octaves to the reference spectrum, relative to the coarsest octave.

    Octaves are differences of à-trous binomial blurs; each is scaled by (wanted / found)^strength, clipped to 0.5…2.
    This undoes part of what a scanner's optics and sharpening do to fine detail.
    """
    smooth, bands = [x], []
    for octave in range(BANDS):
        smooth.append(blur(smooth[-1], 2**octave))
        bands.append(smooth[-2] - smooth[-1])
    found = torch.stack([band.mean(dim=1).flatten(1).std(dim=1) for band in bands], dim=1)  # [N, BANDS]
    wanted = found[:, -1:] * constant(REFERENCE_SPECTRUM, x.device)
    gain = ((wanted / found.clamp(min=1e-4)).clamp(1e-3, 1e3) ** strength).clamp(0.5, 2.0)
    out = smooth[-1]
    for octave, band in enumerate(bands):
        out = out + gain[:, octave, None, None, None] * band
    return out.clamp(0, 1)
