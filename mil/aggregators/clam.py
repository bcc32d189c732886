"""CLAM: attention with supervised clustering of the instances it picks (Lu et al. 2021, arXiv 2004.09666)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import GatedAttention, InstanceEmbedding, attend, attention_extras, glorot
from mil.aggregators.registry import register_aggregator


class CLAM(Aggregator):
    """The base of both forms. In training, `extras` hold what the instance loss needs: `instance_logits`
    `[B, C, 2k, 2]` of the k instances with the highest and then the k with the lowest attention of each class, and
    `instance_valid` `[B, C, 2k]`. A bag of n < 2k instances has n/2 of each."""

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        classes: int = 2,
        branches: int = 1,
        k: int = 8,
        subtyping: bool = False,
        gated: bool = True,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        self.classes, self.attention_rows, self.k, self.subtyping = classes, branches, k, subtyping
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.attention = GatedAttention(embed_dim, attention_dim, branches, gated=gated, dropout=dropout)
        self.instance_classifiers = nn.ModuleList(glorot(nn.Linear(embed_dim, 2)) for _ in range(classes))

    def auxiliary_loss(self, extras: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the picked instances, mean per class, summed over bags; the weight is the bags.

        Of the bag's class, high attention is positive and low attention negative (section "instance-level clustering").
        With `subtyping`, classes exclude each other: high attention of another class is negative, and the mean over
        classes is taken.
        """
        logits, valid = extras["instance_logits"], extras["instance_valid"]
        B, C, picked = valid.shape
        own = F.one_hot(labels, C).bool()  # [B, C]
        high = torch.arange(picked, device=labels.device) < picked // 2
        target = (own[..., None] & high).long()
        counted = valid & (own[..., None] | high) if self.subtyping else valid & own[..., None]
        each = F.cross_entropy(logits.float().flatten(0, 2), target.flatten(), reduction="none").view(B, C, picked)
        per_class = each.masked_fill(~counted, 0.0).sum(dim=2) / counted.sum(dim=2).clamp(min=1)
        bags = per_class.sum(dim=1) / (C if self.subtyping else 1)
        return bags.sum(), torch.full((), float(B), device=logits.device)

    def _scored(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """h `[B, N, E]`, scores and weights `[B, branches, N]`, the pooled rows `[B, branches, E]` in extras."""
        h = self._run(self.embed, x)
        scores = self._run(self.attention, h)
        pooled, weights = attend(scores, h, mask)
        return pooled, scores, weights, self._picked(h, scores, mask) if self.training else {}

    def _picked(self, h: Tensor, scores: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        B, N, E = h.shape
        k = min(self.k, N)
        high, low = scores.detach(), scores.detach()
        if mask is not None:
            high, low = (s.masked_fill(~mask[:, None], end) for s, end in ((high, -torch.inf), (low, torch.inf)))
        index = torch.cat(
            [_padded(high.topk(k).indices, self.k), _padded(low.topk(k, largest=False).indices, self.k)], 2
        )
        index = index.expand(-1, self.classes, -1)  # a single branch picks for all classes
        picked = h.gather(1, index.reshape(B, -1, 1).expand(-1, -1, E)).view(B, self.classes, 2 * self.k, E)
        logits = torch.stack([c(picked[:, i]) for i, c in enumerate(self.instance_classifiers)], dim=1)
        half = (torch.full((B,), N, device=h.device) if mask is None else mask.sum(dim=1)) // 2
        place = torch.arange(self.k, device=h.device)
        valid = torch.cat([place < half.clamp(min=1)[:, None], place < half[:, None]], dim=1)
        return {"instance_logits": logits, "instance_valid": valid[:, None].expand(-1, self.classes, -1)}


@register_aggregator("clam_sb")
class ClamSB(CLAM):
    """One attention branch: z = Σ_n softmax_n(a) h_n, equation 2 with one branch."""

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        classes: int = 2,
        k: int = 8,
        subtyping: bool = False,
        gated: bool = True,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        shared = (k, subtyping, gated, fc_layers, dropout, checkpointing)
        super().__init__(in_dim, embed_dim, attention_dim, classes, 1, *shared)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        pooled, scores, weights, extras = self._scored(x, mask)
        return Aggregated(pooled.squeeze(1), extras | attention_extras(scores, weights, return_attention))


@register_aggregator("clam_mb")
class ClamMB(CLAM):
    """A branch per class: z_c = Σ_n softmax_n(a_c) h_n, which the row c of the head reads (`class_embeddings`
    `[B, C, E]` in extras). The embedding is their mean."""

    attends_by_class = True

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        classes: int = 2,
        k: int = 8,
        subtyping: bool = False,
        gated: bool = True,
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        shared = (k, subtyping, gated, fc_layers, dropout, checkpointing)
        super().__init__(in_dim, embed_dim, attention_dim, classes, classes, *shared)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        pooled, scores, weights, extras = self._scored(x, mask)
        extras |= {"class_embeddings": pooled} | attention_extras(scores, weights, return_attention)
        return Aggregated(pooled.mean(dim=1), extras)


def _padded(index: Tensor, k: int) -> Tensor:
    return F.pad(index, (0, k - index.shape[-1]))
