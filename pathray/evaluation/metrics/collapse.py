"""Do the features still span their space? Two signals that fall when a self-supervised encoder collapses.

Not here: when they are computed (on a cadence: both wait for the device) and which value is alarming.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7


def feature_std(x: Tensor) -> Tensor:
    """Standard deviation over the N features `[N, D]` of each dimension, averaged over D: 0 when all are one point."""
    assert x.ndim == 2 and x.shape[0] > 1, x.shape
    out: Tensor = x.detach().float().std(dim=0).mean()
    return out


def rankme(x: Tensor) -> Tensor:
    """Effective rank of features `[N, D]`, between 1 and min(N, D) (Garrido et al. 2023, arXiv 2210.02885, eq. 1-2):

    exp(−Σ p_k log p_k) with p_k = σ_k / ‖σ‖₁ + 1e-7 over the singular values σ. Not centred, as in the paper.
    Computed in float64 on the CPU; a scalar there. NaN features give NaN; all-zero features give 1.
    """
    assert x.ndim == 2 and min(x.shape) > 0, x.shape
    features = x.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(features).all()):
        return torch.tensor(float("nan"), dtype=torch.float64)
    sigma = torch.linalg.svdvals(features)
    total = sigma.sum()
    if float(total) == 0:
        return torch.ones((), dtype=torch.float64)
    p = sigma / total + EPSILON
    return torch.exp(-(p * p.log()).sum())
