"""Regularisers that keep embeddings of a batch from collapsing onto a point or into few dimensions. Formulas only.

VICReg's variance and covariance terms (Bardes et al., ICLR 2022, arXiv 2105.04906, equations 1 to 4) and SIGReg
(Balestriero and LeCun 2025, "LeJEPA", arXiv 2511.08544). Both are statistics of the whole batch `[N, D]`: of several
ranks, gather the rows first (pathray.train.regulariser). Not here: which tokens, and their weight in a loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
LIMIT, POINTS = 5.0, 17  # of the integral over t


def variance_term(x: Tensor, target: float = 1.0) -> Tensor:
    """Mean over dimensions of max(0, target − √(Var + 1e-4)) for embeddings `[N, D]`, N > 1; a scalar.

    Var is the unbiased variance over N (equation 1). In float32 or float64, also under autocast.
    """
    x = _batch(x)
    return (target - (x.var(dim=0) + EPSILON).sqrt()).clamp(min=0).mean()


def covariance_term(x: Tensor) -> Tensor:
    """Σ_{i≠j} C_ij² / D for embeddings `[N, D]`, N > 1, with C their unbiased covariance (equations 3 and 4); a scalar.

    In float32 or float64, also under autocast.
    """
    x = _batch(x)
    centred = x - x.mean(dim=0)
    with torch.autocast(x.device.type, enabled=False):
        covariance = centred.T @ centred / (len(x) - 1)
    apart: Tensor = covariance - torch.diag(covariance.diagonal())
    return apart.square().sum() / x.shape[1]


def random_directions(dim: int, count: int, seed: int) -> Tensor:
    """`count` random unit vectors in `dim` dimensions, float32 `[dim, count]` on the CPU, the same for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dim, count, generator=generator)
    unit: Tensor = directions / directions.norm(dim=0)
    return unit


def sigreg(x: Tensor, directions: Tensor) -> Tensor:
    """SIGReg: how far the embeddings `[N, D]`, projected onto unit vectors `[D, M]`, are from a standard normal.

    Mean over the M projections of the Epps–Pulley statistic with the weight exp(−t²/2),
        N ∫ |φ̂(t) − exp(−t²/2)|² exp(−t²/2) dt,   φ̂(t) = Σ_n exp(i t x_n·a) / N,
    by the trapezoidal rule on 17 points of [−5, 5]. The integrand is even, so half of them are computed. A scalar;
    about 1 for normal rows, and of the order of N for collapsed ones. In float32 or float64, also under autocast.
    """
    x = _batch(x)
    half = POINTS // 2 + 1
    t = torch.linspace(0.0, LIMIT, half, device=x.device, dtype=x.dtype)
    normal = torch.exp(-t.square() / 2)
    steps = torch.full_like(t, 2 * LIMIT / (half - 1))  # twice the width: both halves of the integral
    ends = torch.ones_like(t)
    ends[0] = ends[-1] = 0.5
    with torch.autocast(x.device.type, enabled=False):
        phases = (x @ directions.to(x))[..., None] * t  # [N, M, T]
    real, imaginary = phases.cos().mean(dim=0), phases.sin().mean(dim=0)
    error = (real - normal).square() + imaginary.square()
    return len(x) * (error * normal * steps * ends).sum(dim=-1).mean()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def _batch(x: Tensor) -> Tensor:
    assert x.ndim == 2 and x.shape[0] > 1, x.shape
    return at_least_float32(x)
