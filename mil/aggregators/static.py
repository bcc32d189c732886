"""Mean and max pooling over embedded instances: the baseline without attention."""

from __future__ import annotations

from torch import Tensor

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding
from mil.aggregators.registry import register_aggregator
from pathray.errors import UserError
from pathray.nn.masked import masked_max, masked_mean

POOLS = {"mean": masked_mean, "max": masked_max}


@register_aggregator("static")
class Static(Aggregator):
    """z = mean_n h_n or max_n h_n per dimension, h_n = ReLU(W x_n + b); with `fc_layers=0`, h_n = x_n."""

    attention_rows = 0

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        pool: str = "mean",
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim if fc_layers else in_dim, checkpointing)
        if pool not in POOLS:
            raise UserError("unknown pooling", key="model.pool", found=pool, expected=" or ".join(POOLS))
        self.pool = pool
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        return Aggregated(POOLS[self.pool](self._run(self.embed, x), mask), {})
