"""The training recipe of a regression: one phase, its loss, and the augmentation of images on the device.

A pathray.train.recipe.Recipe. Not here: networks (regression.model), formulas (regression.loss), devices, files and
Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pathray.nn.stain import constant, jitter_stain
from pathray.train.recipe import Loss, Progress
from regression.config import AugmentConfig, RunConfig
from regression.loss import image_losses
from regression.model import ExpressionNet, Preprocessing, build_net, preprocessing
from regression.normalise import Normaliser


class RegressionRecipe:
    """Built from the config's seed alone, so equal on every rank; or around an exported `net` with its `given`
    preprocessing. `normaliser` scales predictions back to the targets' units; `features` `[N, D]` of all rows of the
    plan, if stored, replace the images of a frozen backbone."""

    def __init__(
        self,
        config: RunConfig,
        normaliser: Normaliser,
        net: ExpressionNet | None = None,
        given: Preprocessing | None = None,
        features: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.config, self.normaliser, self.features = config, normaliser, features
        self.preprocessing: Preprocessing = given or preprocessing(config)
        self.modules = nn.ModuleDict({"net": net if net is not None else build_net(config)})
        trained = [(name, p) for name, p in self.modules.named_parameters() if p.requires_grad]
        self.params = {"model": trained}

    @property
    def net(self) -> ExpressionNet:
        return cast(ExpressionNet, self.modules["net"])

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """uint8 pixels → augmented, normalised float images; everything else, features too, is unchanged."""
        if "features" in micro:  # stored features of a frozen backbone
            return micro
        images = augment(to_float(micro["image"]), micro["draws"], self.config.augment)
        return {**micro, "image": normalise(images, self.preprocessing)}

    def inputs(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, S, S, 3]` → what the network takes, without augmentation."""
        return to_inputs(pixels, self.preprocessing)

    def loss(self, phase: str, micro: dict[str, Tensor], progress: Progress) -> Loss:
        """Σ of the images' losses, weight = images."""
        assert phase == "model", phase
        predicted = self.net.head(micro["features"]) if "features" in micro else self.net(micro["image"])
        each = image_losses(predicted, micro["target"], self.config.loss)
        weight = torch.full((), float(each.shape[0]), dtype=torch.float32, device=each.device)
        return Loss(each.sum(), weight, {"loss_regression": each.detach().mean()})

    def after_step(self, progress: Progress) -> None:
        return None

    def signals(self) -> dict[str, float]:
        return {}


def to_float(pixels: Tensor) -> Tensor:
    """uint8 `[B, S, S, 3]` → float32 `[B, 3, S, S]` in 0…1."""
    return pixels.movedim(-1, 1).to(torch.float32) / 255.0


def normalise(images: Tensor, given: Preprocessing) -> Tensor:
    """`[B, 3, S, S]` in 0…1 → what the network takes."""
    mean, std = constant(given.mean, images.device), constant(given.std, images.device)
    return (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def to_inputs(pixels: Tensor, given: Preprocessing) -> Tensor:
    """uint8 `[B, S, S, 3]` → what the network takes, without augmentation."""
    return normalise(to_float(pixels), given)


def augment(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Rotate, flip and stain images `[B, 3, S, S]` in 0…1 by each image's own draws `[B, 9]`."""
    if config.geometry:
        images = turn(images, draws[:, :3])
    if config.stain > 0:
        images = jitter_stain(images, draws[:, 3:], config.stain)
    return images


def turn(images: Tensor, draws: Tensor) -> Tensor:
    """Apply one of the eight flips and quarter turns, by three uniforms `[B, 3]`; does not wait for the device."""
    wanted = (draws < 0.5)[:, :, None, None, None]
    turns: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
        lambda x: x.transpose(-1, -2),
    )
    for i, turn in enumerate(turns):
        images = torch.where(wanted[:, i], turn(images), images)
    return images
