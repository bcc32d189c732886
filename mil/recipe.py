"""The training recipe of a MIL classifier: one phase, aggregator and head together, on bags of features.

A pathray.train.recipe.Recipe. Not here: networks and losses (mil.model, mil.aggregators), devices, files, Ray.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mil.config import RunConfig
from mil.model.build import build_net
from mil.model.cox import CoxHead
from mil.model.slide_model import SlideModel
from mil.target import Target
from pathray.device import Gather, keep_local
from pathray.train.recipe import Loss, Micro, Progress


class MILRecipe:
    """Built from the config's seed alone, so equal on every rank; for the `target` of a plan. `gather` concatenates the
    rows of all ranks with a backward pass that sums (`Device.gather_sum_grad`); `rank` is this process: for survival,
    whose loss compares slides."""

    def __init__(self, config: RunConfig, target: Target, gather: Gather = keep_local, rank: int = 0) -> None:
        self.config, self.target, self.gather, self.rank = config, target, gather, rank
        net = build_net(config, target)
        self.frozen = config.training.freeze_aggregator
        net.aggregator.requires_grad_(not self.frozen)
        self.modules = nn.ModuleDict({"net": net})
        self.params = {"model": [(name, p) for name, p in self.modules.named_parameters() if p.requires_grad]}

    @property
    def net(self) -> SlideModel:
        return cast(SlideModel, self.modules["net"])

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        """Stored features `[B, N, D]` → float32. A frozen aggregator drops nothing."""
        if self.frozen:
            self.net.aggregator.eval()
        return {**micro, "features": micro["features"].float()}

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        """Σ of the slides' losses and weights; a model's own loss (CLAM, DTFD) is added per slide."""
        assert phase == "model", phase
        truth = micro["truth"].long() if self.target.classes else micro["truth"]
        out, head = self.net(micro["features"], micro["mask"], micro["coords"]), self.net.head
        assert head is not None and out.logits is not None
        if isinstance(head, CoxHead):
            total, weight, _ = head.loss(out.logits, truth, self.gather, self.rank)
        else:
            total, weight, _ = head.loss(out.logits, truth)
        metrics: dict[str, Tensor] = {"loss_supervised": total.detach() / weight}
        if self.target.classes and (own := self.net.aggregator.auxiliary_loss(out.extras, truth)) is not None:
            extra = own[0] / own[1]
            total = total + self.config.training.loss.auxiliary * extra * weight
            metrics["loss_auxiliary"] = extra.detach()
        if self.target.classes:
            chosen = torch.stack(list(head.predict(out.logits.detach()).values()), dim=1).argmax(dim=1)
            metrics["train_accuracy"] = (chosen == truth).float().mean()
        return Loss(total, weight, metrics)

    def after_step(self, progress: Progress) -> None:
        return None

    def signals(self) -> dict[str, float]:
        return {}
