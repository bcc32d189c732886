"""The training recipe of a fine-tuning: one phase, encoder and head together, on augmented volumes.

A pathray.train.recipe.Recipe. Not here: the network (oct.downstream.network), devices, files and Ray.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from oct.augment import Volumes
from oct.downstream.attentive import head_loss
from oct.downstream.config import DownstreamConfig
from oct.downstream.network import VolumeNet, build_net
from pathray.train.recipe import Loss, Micro, Progress


class FinetuneRecipe:
    """Built from the config's seed and its encoder alone, so equal on every rank. `classes`: 0 for a regression."""

    def __init__(self, config: DownstreamConfig, classes: int) -> None:
        self.config, self.classes = config, classes
        net, self.given = build_net(config, classes)
        self.modules = nn.ModuleDict({"net": net})
        self.params = {"model": list(self.modules.named_parameters())}
        self.volumes = Volumes(config.augment, self.given.grid.spacing_mm)

    @property
    def net(self) -> VolumeNet:
        return cast(VolumeNet, self.modules["net"])

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        """int16 volumes → augmented volumes as the encoder was trained on, `[B, 1, D, H, W]`."""
        x = self.volumes(micro["image"], micro["inside"], micro["draws"])
        return {**micro, "image": self.given.scale(x, micro["inside"])}

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        """Σ of the volumes' losses, weight = volumes."""
        assert phase == "model", phase
        predicted = self.net(micro["image"])
        each = head_loss(predicted, micro["truth"])
        metrics = {"loss_supervised": each.detach().mean()}
        if self.classes:
            metrics["train_accuracy"] = (predicted.detach().argmax(dim=1) == micro["truth"]).float().mean()
        weight = torch.full((), float(each.shape[0]), dtype=torch.float32, device=each.device)
        return Loss(each.sum(), weight, metrics)

    def after_step(self, progress: Progress) -> None:
        return None

    def signals(self) -> dict[str, float]:
        return {}

    def predict(self, image: Tensor, inside: Tensor) -> Tensor:
        """Outputs `[B, K]` in float32 for int16 volumes `[B, D, H, W]`, without augmentation."""
        out: Tensor = self.net(self.given.inputs(image, inside)).float()
        return out
