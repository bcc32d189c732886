"""The head for survival: one log-risk per bag and Cox's partial likelihood. Not here: other heads (mil.model.heads)."""

from __future__ import annotations

import torch
from torch import Tensor

from mil.config import TIES
from mil.model.heads import Head
from pathray.device import Gather, keep_local
from pathray.errors import UserError
from pathray.nn.regularise import at_least_float32
from pathray.train.recipe import Loss


class CoxHead(Head):
    """Targets `[B, 2]`: time > 0 and event (1 observed, 0 censored). The logit is the log-risk.

    The loss compares a bag with those of its batch that are still at risk, so it is no sum over bags: micro-batches
    would compare fewer. A batch is therefore never accumulated (mil.config.resolve), and ranks gather theirs.
    """

    compares_bags = True

    def __init__(self, embed_dim: int, ties: str = "efron", with_linear: bool = True) -> None:
        super().__init__(embed_dim, 1, with_linear)
        if ties not in TIES:
            raise UserError("unknown way with ties", key="head.ties", found=ties, expected=" or ".join(TIES))
        self.ties = ties

    def loss(self, logits: Tensor, target: Tensor, gather: Gather = keep_local, rank: int = 0) -> Loss:
        """−log partial likelihood of this rank's events among the bags of all ranks; the weight is its events.

        `gather` concatenates the `[B, …]` of all ranks in rank order, with a backward pass that sums. A batch without
        an event has the loss 0 and the weight 1.
        """
        everyone, targets = gather(logits), gather(target.to(logits))
        each = cox_terms(everyone[:, 0], targets[:, 0], targets[:, 1] > 0, self.ties)
        mine = slice(rank * len(logits), (rank + 1) * len(logits))
        none = (targets[:, 1] > 0).sum() == 0
        events = (target[:, 1] > 0).sum().to(each.dtype)
        share = len(logits) / len(everyone)
        return Loss(each[mine].sum(), torch.where(none, torch.full_like(events, share), events))

    @property
    def value_names(self) -> tuple[str, ...]:
        return ("risk",)

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """`{"risk": log-risk [B]}`; higher means an earlier event."""
        return {"risk": logits[:, 0]}


def cox_terms(risk: Tensor, time: Tensor, event: Tensor, ties: str) -> Tensor:
    """−log partial likelihood per event `[B]`, 0 where censored (Cox 1972), for log-risks r, times t and events `[B]`:

        Breslow: log Σ_{j: t_j ≥ t_i} exp(r_j) − r_i
        Efron: the l-th (from 0) of d events at one time leaves out l/d of the sum over these d events

    Computed in float32 or float64 with the largest risk subtracted. The matrix `[B, B]` is of the batch.
    """
    risk = at_least_float32(risk)
    scaled = (risk - risk.detach().max()).exp()
    at_risk = (time[None, :] >= time[:, None]).to(risk.dtype)
    total = at_risk @ scaled
    if ties == "efron":
        tied = (time[None, :] == time[:, None]) & event & event[:, None]
        number = tied.sum(dim=1).clamp(min=1)
        earlier = (tied & torch.ones_like(tied).tril(-1)).sum(dim=1)  # of the tied events, in the batch's order
        total = total - (earlier / number).to(risk.dtype) * (tied.to(risk.dtype) @ scaled)
    each = total.clamp(min=torch.finfo(risk.dtype).tiny).log() + risk.detach().max() - risk
    return each.masked_fill(~event, 0.0)
