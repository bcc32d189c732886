"""Losses as sums over images, so that the mean over a global batch does not depend on how it was divided.

Predictions and targets z `[B, K]` are normalised. Per image, with the mean over its K genes:
    mse    (p − z)²
    huber  d²/2 where |d| ≤ δ, δ(|d| − δ/2) beyond, d = p − z (Huber 1964)
    mix    (1 − w) · mse + w · (1 − r), r = Pearson's correlation of p and z over the genes of the image
A correlation over the images of a batch, gene by gene, is not a sum over images: it would change with micro-batch and
number of workers, and over four images it is mostly noise. The correlation over an image's genes is such a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regression.config import LossConfig

TINY = 1e-6  # of the squared deviations: keeps the gradient of a constant prediction finite


def image_losses(predicted: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """The loss of each image `[B]`, in float32 (float64 for float64 predictions)."""
    predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
    target = target.to(predicted.dtype)
    if config.kind == "huber":
        return F.huber_loss(predicted, target, delta=config.huber_delta, reduction="none").mean(dim=1)
    squared = (predicted - target).square().mean(dim=1)
    if config.kind == "mse":
        return squared
    return (1 - config.pearson_weight) * squared + config.pearson_weight * (1 - profile_pearson(predicted, target))


def profile_pearson(predicted: Tensor, target: Tensor) -> Tensor:
    """Pearson's r over the genes of each image `[B]`; near 0 if either is constant."""
    p, z = (v - v.mean(dim=1, keepdim=True) for v in (predicted, target))
    below = (p.square().sum(dim=1) + TINY).sqrt() * (z.square().sum(dim=1) + TINY).sqrt()
    return (p * z).sum(dim=1) / below
