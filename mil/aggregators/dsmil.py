"""DSMIL: dual-stream multiple instance learning (Li, Li and Eliceiri 2021, arXiv 2011.08939)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import InstanceEmbedding, attention_extras, glorot
from mil.aggregators.registry import register_aggregator
from pathray.nn.masked import masked_softmax


@register_aggregator("dsmil")
class DSMIL(Aggregator):
    """Per class c, the critical instance m is the one with the highest score c_m = max_n w_c·h_n (equation 2), and

        b_c = Σ_n softmax_n(q_n·q_m/√d) v_n (equations 4 and 5);  logits = ½ (c_m + W b) (equation 6)

    with W over all classes' b, `[C, C, E]`. Weights sum to 1, so that the linear v is applied to the sum. The
    embedding is the mean of b over classes. `extras["instance_max"]` `[B, C]` is c_m.
    """

    attends_by_class = True
    makes_logits = True

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        classes: int = 2,
        value_dropout: float = 0.0,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.classes, self.attention_rows, self.value_dropout = classes, classes, value_dropout
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.instance_classifier = glorot(nn.Linear(embed_dim, classes))
        self.query, self.value = glorot(nn.Linear(embed_dim, attention_dim)), glorot(nn.Linear(embed_dim, embed_dim))
        self.bag_classifier = nn.Conv1d(classes, classes, embed_dim)

    def auxiliary_loss(self, extras: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the instance stream alone (binary with one class), summed over bags; the weight is the
        bags."""
        scores = extras["instance_max"].float()
        if self.classes == 1:
            total = F.binary_cross_entropy_with_logits(scores[:, 0], labels.float(), reduction="sum")
        else:
            total = F.cross_entropy(scores, labels, reduction="sum")
        return total, torch.full((), float(len(labels)), device=scores.device)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        rows = None if mask is None else mask[:, None]
        scores = self.instance_classifier(h).transpose(1, 2)  # [B, C, N]
        best, critical = (scores if rows is None else scores.masked_fill(~rows, -torch.inf)).max(dim=2)
        q = self._run(self.query, h)
        q_critical = q.gather(1, critical[..., None].expand(-1, -1, q.shape[2]))
        attention = q_critical @ q.transpose(1, 2) / q.shape[2] ** 0.5
        weights = masked_softmax(attention, rows)
        values = F.dropout(h, self.value_dropout, self.training)
        bags = self.value(torch.bmm(weights.to(h.dtype), values))  # [B, C, E]
        logits = 0.5 * (best + self.bag_classifier(bags).squeeze(2))
        extras = {"logits": logits, "instance_max": best}
        return Aggregated(bags.mean(dim=1), extras | attention_extras(attention, weights, return_attention))
