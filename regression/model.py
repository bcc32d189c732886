"""Backbone and linear head: image → normalised expression. Also the initial weights and the preprocessing of inputs.

Not here: losses (regression.loss), the targets' scale (regression.normalise).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathray.errors import UserError
from pathray.nn.heads import LinearHead
from pathray.nn.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet, load_weights
from pathray.nn.vit import ViT, vit_config
from pathray.store.artifact import EncoderArtifact, describe, describe_vit
from pathray.store.storage import Storage, digest_of
from regression.config import RESNETS, RunConfig

_ALONE = threading.Lock()


@dataclass(frozen=True)
class Preprocessing:
    """(value − `mean`) / `std` per colour, for values in 0…1; images are `size` pixels wide; `mpp` if known."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    mpp: float | None = None


class ExpressionNet(nn.Module):
    """`[B, 3, S, S]` → normalised targets `[B, K]`. A frozen backbone runs in evaluation mode without gradients."""

    def __init__(self, backbone: ResNet | ViT, outputs: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        dim = backbone.dim if isinstance(backbone, ResNet) else backbone.config.dim
        self.head = LinearHead(dim, outputs)
        self.backbone.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        if not self.frozen:
            return self._predict(self.features(images))
        self.backbone.eval()
        with torch.no_grad():
            features = self.features(images)
        return self._predict(features)

    def features(self, images: Tensor) -> Tensor:
        """`[B, D]`: a ResNet's mean over its last map, the mean over a ViT's patch tokens."""
        if isinstance(self.backbone, ResNet):
            pooled: Tensor = self.backbone(images)
            return pooled
        tokens: Tensor = self.backbone(images)
        return tokens[:, self.backbone.num_prefix :].mean(dim=1)

    def _predict(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(features)
        return out


def build_net(config: RunConfig) -> ExpressionNet:
    """The network of a config, initialised from the seed; torch's global random state does not change. A lock makes
    this thread-safe: folds are threads of one process, and torch has one generator."""
    model = config.model
    with _ALONE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if model.backbone == "artifact":
            backbone: ResNet | ViT = EncoderArtifact.load(str(model.artifact))[0].train()
        elif model.backbone in RESNETS:
            backbone = ResNet(model.backbone)
        else:
            side, patch = (config.data.image_size,) * 2, (model.patch_size,) * 2
            options: dict[str, Any] = {"checkpointing": model.checkpointing}
            backbone = ViT(vit_config(model.backbone, img_size=side, patch_size=patch, **options))
        if model.weights is not None:
            load_weights(backbone, model.weights)
        return ExpressionNet(backbone, config.data.target_dim, frozen=model.frozen)


def preprocessing(config: RunConfig) -> Preprocessing:
    """The preprocessing for the backbone: the artifact's own, otherwise ImageNet's, which common weights expect.

    UserError for a `data.image_size` or an explicit `data.mean` or `data.std` that differs from the artifact's.
    """
    data, mpp = config.data, None
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if config.model.backbone == "artifact":
        description = describe_vit(str(config.model.artifact))
        given, patch = description["preprocessing"], description["vit"]["patch_size"]
        if len(patch) != 2 or any(data.image_size % p for p in patch):
            key, expected = "data.image_size", f"whole patches of {patch} pixels"
            raise UserError("invalid image size", key=key, found=data.image_size, expected=expected)
        mean, std, mpp = tuple(given["mean"]), tuple(given["std"]), given["mpp"]
        for key, own, wanted in (("mean", mean, data.mean), ("std", std, data.std)):
            if wanted is not None and tuple(wanted) != own:
                message = "the encoder was trained with other inputs"
                raise UserError(
                    message, file=config.model.artifact, key=f"data.{key}", found=wanted, expected=list(own)
                )
    return Preprocessing(tuple(data.mean or mean), tuple(data.std or std), data.image_size, mpp)


def initial_digest(config: RunConfig) -> str:
    """The backbone's initial weights: the digest of an artifact's weights or of the weights file, or "random"."""
    model = config.model
    if model.backbone == "artifact":
        return str(describe(str(model.artifact))["sha256"])
    if model.weights is None:
        return "random"
    folder, _, name = model.weights.rpartition("/")
    return Storage.of(folder or ".").read_local(name, digest_of)
