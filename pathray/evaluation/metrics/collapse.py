"""Does a self-supervised encoder learn, or does it collapse? Signals over its features while it trains.

`feature_std` and `rankme` fall when features collapse. `explained_variance` rises when a predictor learns more than the
mean of its targets. `Newest` keeps the features that the signals look at.
Not here: when they are computed (`rankme` waits for the device) and which value is alarming.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pathray.device import Gather, keep_local

EPSILON = 1e-7
EQUAL = 1e-12  # a spread below this share of the squares is rounding


def feature_std(x: Tensor) -> Tensor:
    """Standard deviation over the N features `[N, D]` of each dimension, averaged over D: 0 when all are one point."""
    assert x.ndim == 2 and x.shape[0] > 1, x.shape
    out: Tensor = x.detach().float().std(dim=0).mean()
    return out


def explained_variance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of the variance of targets `[N, D]` that predictions `[N, D]` explain, averaged over the D dimensions.

    Per dimension 1 − Σ (target − prediction)² / Σ (target − mean target)²: 1 is exact, 0 as good as the mean target of
    these N, below 0 worse. Dimensions in which all targets are equal do not count; 0 when all are. A scalar on the
    device, which is not waited for.
    """
    assert predictions.shape == targets.shape and targets.ndim == 2, (predictions.shape, targets.shape)
    z, h = predictions.detach().float(), targets.detach().float()
    error, spread = (z - h).square().sum(dim=0), (h - h.mean(dim=0)).square().sum(dim=0)
    counts = spread > EQUAL * h.square().sum(dim=0)
    each = torch.where(counts, 1 - error / torch.where(counts, spread, 1.0), 0.0)
    out: Tensor = each.sum() / counts.sum().clamp(min=1)
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


class Newest:
    """The newest features of a training, `[size, dim]`, kept on the device: one shape, no copy to the host."""

    def __init__(self, size: int, dim: int) -> None:
        self.size, self.seen = size, 0
        self.features = torch.zeros(size, dim)

    def add(self, features: Tensor) -> None:
        """Keep features `[N, dim]`; the oldest leave."""
        features = features.detach().float()
        self.features = torch.cat([self.features.to(features.device), features])[-self.size :]
        self.seen += features.shape[0]

    def on_host(self, gather: Gather = keep_local) -> Tensor:
        """Those kept so far, `[min(seen, size), dim]`, oldest first. Waits for the device.

        `gather` concatenates the rows of all ranks, which have seen equally many: then at most `size` evenly spaced
        ones of all, rank after rank.
        """
        everyone = gather(self.features).cpu()  # each new shape would be a new XLA graph
        kept = everyone.view(-1, self.size, everyone.shape[-1])[:, self.size - min(self.seen, self.size) :].flatten(
            0, 1
        )
        return kept[:: max(1, -(-len(kept) // self.size))]
