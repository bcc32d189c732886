"""Global-norm clipping of a flat gradient without a host sync. Not here: what a NaN norm leads to."""

from __future__ import annotations

import torch
from torch import Tensor


def clip_by_global_norm_(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale flat `gradient` in place by min(1, max_norm / ‖gradient‖); the norm before, a scalar tensor.

    (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1.) A NaN or infinite norm makes the gradient NaN or 0, which the
    caller's `ok` flag, computed from the returned norm, keeps away from the weights.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
