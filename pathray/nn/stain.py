"""Optical density and stain jitter of bright-field pixels, batched and on the device. No state, no randomness.

Random numbers come with each unit, so a unit looks the same on any device and in any batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Optical densities of haematoxylin, eosin and DAB per colour (Ruifrok and Johnston 2001), rows normalised.
STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
_UNIT = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
_ROWS, _INVERSE = (tuple(map(tuple, m.tolist())) for m in (_UNIT, np.linalg.inv(_UNIT)))


def jitter_stain(x: Tensor, draws: Tensor, strength: float) -> Tensor:
    """HED jitter (Tellez et al. 2018): stain s_i → s_i · (1 + σ u_i) + σ/4 · v_i in optical density, u, v in (−1, 1).

    x [N, 3, H, W] in 0…1, draws [N, 6] uniforms.
    """
    stains, inverse = constant(_ROWS, x.device), constant(_INVERSE, x.device)
    amounts = torch.einsum("nchw,cs->nshw", density(x), inverse)
    u = (2 * draws - 1)[:, :, None, None] * strength
    amounts = amounts * (1 + u[:, :3]) + u[:, 3:] / 4
    return torch.exp(-torch.einsum("nshw,sc->nchw", amounts, stains)).clamp(0, 1)


@lru_cache(maxsize=32)
def constant(values: Any, device: torch.device) -> Tensor:
    """A float32 tensor of (nested) tuples, cached per device: do not modify it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def density(x: Tensor) -> Tensor:
    """Optical density −ln x of intensities x in 0…1, at least one grey level."""
    return -torch.log(x.clamp(min=1 / 255))
