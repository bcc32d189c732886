"""The regulariser of a recipe that predicts embeddings: `model.regulariser`, over the embeddings of a global batch.

Not here: the formulas (pathray.nn.regularise), and which embeddings a science regularises (its recipe).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathray.config.sections import RegulariserConfig
from pathray.device import stable_seed
from pathray.nn.regularise import covariance_term, random_directions, sigreg, variance_term
from pathray.train.global_batch import check_whole_batch

COVARIANCE = 1 / 25  # weight of VICReg's covariance next to its variance: 1 and 25 in arXiv 2105.04906


def keep_local(x: Tensor) -> Tensor:
    """The whole batch, if there is one process, or one program over all devices."""
    return x


class Regulariser:
    """`weight` times the mean over kinds of embeddings of the term that `config.regulariser` names.

    `gather` concatenates the rows of all ranks, with a backward pass that sums (`Device.gather_sum_grad`). So all ranks
    have the same value, and a loss that adds it to each sample has, after the loop's sum over ranks, the gradient of
    one process. `micro_key` is the key of the micro-batch, for the error.
    """

    def __init__(
        self, config: RegulariserConfig, seed: int, gather: Callable[[Tensor], Tensor] = keep_local, *, micro_key: str
    ) -> None:
        self.config, self.seed, self.gather, self.micro_key = config, seed, gather, micro_key

    def __call__(self, kinds: Sequence[Tensor], step: int, global_batch: int) -> Tensor:
        """A scalar for this rank's embeddings, `[B, D]` each, in float32 or float64.

        SIGReg draws new directions at each `step`, the same on all ranks. UserError when the rows of all ranks are not
        the `global_batch`: the statistics of a part of it are another loss.
        """
        everyone = self.gather(torch.stack([x if x.dtype == torch.float64 else x.float() for x in kinds], dim=1))
        name = self.config.regulariser
        check_whole_batch(len(everyone), global_batch, f"model.regulariser={name}", self.micro_key)
        term = vicreg if name == "vicreg" else self._sigreg(step, everyone.shape[2])
        return self.config.weight * torch.stack([term(x) for x in everyone.unbind(dim=1)]).mean()

    def _sigreg(self, step: int, dim: int) -> Callable[[Tensor], Tensor]:
        directions = random_directions(dim, self.config.regulariser_directions, stable_seed(self.seed, "sigreg", step))
        return lambda x: sigreg(x, directions)


def vicreg(x: Tensor) -> Tensor:
    """VICReg's variance and covariance terms of embeddings `[N, D]`, in the paper's proportion."""
    return variance_term(x) + COVARIANCE * covariance_term(x)
