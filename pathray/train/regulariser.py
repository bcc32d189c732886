"""The regulariser of a recipe that predicts features: `model.regulariser`, over views of a whole global batch.

Views of a sample, such as its context and its targets, are projected. Their embeddings should be equal, and each view's
embeddings spread out over the batch: LeJEPA (arXiv 2511.08544) with SIGReg, or VICReg (arXiv 2105.04906). Not here: the
formulas (pathray.nn.regularise), and which views a science has (its recipe).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pathray.config.sections import RegulariserConfig
from pathray.device import Gather, keep_local, stable_seed
from pathray.nn.heads import ProjectionHead
from pathray.nn.regularise import at_least_float32, covariance_term, random_directions, sigreg, variance_term
from pathray.train.global_batch import check_whole_batch

COVARIANCE = 1 / 25  # weight of VICReg's covariance next to its variance: 1 and 25 in the paper


class Regulariser(nn.Module):
    """The projection and the terms for features `[B, dim]` of every view. torch's generator initialises the weights.

    `gather` concatenates the rows of all ranks, with a backward pass that sums (`Device.gather_sum_grad`). Projection,
    its batch norm and the terms see the whole global batch, so all ranks have the same value, and a loss that adds it
    to each sample has, after the loop's sum over ranks, the gradient of one process. `micro_key` is the key of the
    micro-batch, for the error.
    """

    def __init__(
        self, config: RegulariserConfig, dim: int, seed: int, gather: Gather = keep_local, *, micro_key: str
    ) -> None:
        super().__init__()
        self.config, self.seed, self.gather, self.micro_key = config, seed, gather, micro_key
        hidden = (config.projection_hidden,) if config.projection_hidden else ()
        self.head = ProjectionHead((dim, *hidden, config.projection_dim), norm="batch")

    def forward(self, views: Sequence[Tensor], step: int, global_batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of both terms, and each of them for the log: how far each view's embeddings are from spread
        out, and their mean squared distance from the mean of a sample's views. In float32 or float64, also under
        autocast.

        SIGReg draws new directions at each `step`, the same on all ranks. UserError when the rows of all ranks are not
        the `global_batch`: the statistics of a part of it are another loss.
        """
        config = self.config
        everyone = self.gather(torch.stack([at_least_float32(x) for x in views], dim=1))
        check_whole_batch(len(everyone), global_batch, config.whole_batch, self.micro_key, least=2)
        with torch.autocast(everyone.device.type, enabled=False):
            z = self.head(everyone)  # [N, views, projection_dim]
            term = vicreg if config.regulariser == "vicreg" else self._sigreg(step, z)
            spread = torch.stack([term(x) for x in z.unbind(dim=1)]).mean()
            invariance = (z - z.mean(dim=1, keepdim=True)).square().mean()
        terms = {"loss_spread": spread.detach(), "loss_invariance": invariance.detach()}
        return config.resolved_regulariser_weight * spread + config.invariance_weight * invariance, terms

    def _sigreg(self, step: int, z: Tensor) -> Callable[[Tensor], Tensor]:
        config, seed = self.config, stable_seed(self.seed, "sigreg", step)
        directions = random_directions(config.projection_dim, config.regulariser_directions, seed)
        placed = directions.to(z.device, z.dtype, non_blocking=True)  # once for all views
        return lambda x: sigreg(x, placed)


def vicreg(x: Tensor) -> Tensor:
    """VICReg's variance and covariance terms of embeddings `[N, D]`, in the paper's proportion to each other."""
    return variance_term(x) + COVARIANCE * covariance_term(x)
