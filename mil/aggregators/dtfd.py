"""DTFD-MIL: attention over pseudo-bags, then over what each of them gives (Zhang et al. 2022, arXiv 2203.12081)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.instances import GatedAttention, InstanceEmbedding, attend, attention_extras, glorot
from mil.aggregators.registry import register_aggregator
from pathray.errors import UserError
from pathray.nn.regularise import at_least_float32

DISTILLATIONS = ("afs", "maxs", "maxmins")


@register_aggregator("dtfd")
class DTFD(Aggregator):
    """A bag is divided into `pseudo_bags` of equal size. Tier 1 pools each by attention; tier 2 pools what is distilled
    from them (section 3.3): `afs` the pooled feature, `maxs` the instance with the highest class activation, `maxmins`
    those with the highest and the lowest.

    In training the division is drawn from `generator`, or from torch's, which a training loop reseeds; in evaluation
    instance i is in pseudo-bag i mod K, so that a result repeats. `extras["pseudo_logits"]` `[B, K, C]` and
    `pseudo_valid` `[B, K]` are for the tier-1 loss. The attention returned `[B, 1, N]` is an instance's weight in z
    with `afs`: tier 2's weight of its pseudo-bag times tier 1's weight in it.
    """

    permutes = False

    def __init__(
        self,
        in_dim: int,
        embed_dim: int = 512,
        attention_dim: int = 384,
        classes: int = 2,
        pseudo_bags: int = 5,
        distill: str = "afs",
        fc_layers: int = 1,
        dropout: float = 0.25,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(in_dim, embed_dim, checkpointing)
        if distill not in DISTILLATIONS:
            expected = " or ".join(DISTILLATIONS)
            raise UserError("unknown distillation", key="model.distill", found=distill, expected=expected)
        self.classes, self.pseudo_bags, self.distill = classes, pseudo_bags, distill
        self.generator: torch.Generator | None = None
        self.embed = InstanceEmbedding(in_dim, embed_dim, fc_layers, dropout)
        self.attention = GatedAttention(embed_dim, attention_dim, dropout=dropout)
        self.classifier = glorot(nn.Linear(embed_dim, classes))
        self.second_attention = GatedAttention(embed_dim, attention_dim, dropout=dropout)

    def auxiliary_loss(self, extras: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tier 1's cross-entropy: every pseudo-bag has its bag's label (equation 11); the weight is their number."""
        logits, valid = extras["pseudo_logits"].float(), extras["pseudo_valid"]
        repeated = labels[:, None].expand_as(valid)
        if self.classes == 1:
            each = F.binary_cross_entropy_with_logits(logits[..., 0], repeated.float(), reduction="none")
        else:
            each = F.cross_entropy(logits.transpose(1, 2), repeated, reduction="none")
        return each.masked_fill(~valid, 0.0).sum(), valid.sum().to(each.dtype)

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        h = self._run(self.embed, x)
        scores = self._run(self.attention, h)
        members = self._members(h, mask)  # [B, K, N]
        valid = members.any(dim=2)
        weights = _softmax_over(scores, members)
        pooled = torch.bmm(weights.to(h.dtype), h)  # [B, K, E]
        distilled, kept = (pooled, valid) if self.distill == "afs" else self._instances(h, weights, members)
        second_scores = self._run(self.second_attention, distilled)
        bag, second = attend(second_scores, distilled, kept)
        extras = {"pseudo_logits": self.classifier(pooled), "pseudo_valid": valid}
        if return_attention:
            per_pseudo = second.unflatten(2, (self.pseudo_bags, -1)).sum(dim=3)
            through = (per_pseudo.transpose(1, 2) * weights).sum(dim=1, keepdim=True)
            extras |= attention_extras(through.log(), through, True)
        return Aggregated(bag.squeeze(1), extras)

    def _members(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Which instances are in which pseudo-bag, bool `[B, K, N]`: a random order, or the given one, dealt out."""
        B, N, _ = h.shape
        rank = torch.arange(N, device=h.device).expand(B, N)
        if self.training:
            draw = torch.rand(B, N, device=h.device, generator=self.generator)
            rank = (draw if mask is None else draw + (~mask).to(draw.dtype)).argsort(dim=1).argsort(dim=1)
        members = rank[:, None] % self.pseudo_bags == torch.arange(self.pseudo_bags, device=h.device)[:, None]
        return members if mask is None else members & mask[:, None]

    def _instances(self, h: Tensor, weights: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """The instances of each pseudo-bag with the highest (and lowest) probability of the last class by class
        activation, w·(a_n h_n) (equations 8 to 10): (`[B, K·1 or 2, E]`, which are real)."""
        with torch.no_grad():
            activation = self.classifier.weight.to(h.dtype) @ h.transpose(1, 2)  # [B, C, N]
            by_pseudo = weights[:, :, None] * activation[:, None]  # [B, K, C, N]
            positive = at_least_float32(by_pseudo).softmax(dim=2)[:, :, -1] if self.classes > 1 else by_pseudo[:, :, 0]
            picks = [positive.masked_fill(~members, -torch.inf).argmax(dim=2)]
            if self.distill == "maxmins":
                picks.append(positive.masked_fill(~members, torch.inf).argmin(dim=2))
            index = torch.stack(picks, dim=2).flatten(1)
        valid = members.any(dim=2, keepdim=True).expand(-1, -1, len(picks)).flatten(1)
        return h.gather(1, index[..., None].expand(-1, -1, h.shape[2])), valid


def _softmax_over(scores: Tensor, members: Tensor) -> Tensor:
    """softmax of scores `[B, 1, N]` within each row of members `[B, K, N]`; all 0 for an empty row."""
    empty = ~members.any(dim=2, keepdim=True)
    filled = at_least_float32(scores).masked_fill(~(members | empty), -torch.inf)
    return filled.softmax(dim=2).masked_fill(empty, 0.0)
