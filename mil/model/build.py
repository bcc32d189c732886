"""Builds the network of a MIL config for a target, with weights from its seed or from a file. No devices."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mil.config import ModelConfig, RunConfig, TrainingConfig
from mil.model.import_weights import import_weights
from mil.model.slide_model import SlideModel, build_model
from mil.model.weights_file import read_weights_file, weights_digest
from mil.target import ORDINAL, REGRESSION, SURVIVAL, Target
from pathray.errors import UserError

log = logging.getLogger(__name__)
SEEDED = "seed"


def build_net(config: RunConfig, target: Target) -> SlideModel:
    """The same weights wherever the config is the same; torch's global random state does not change."""
    training = config.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        net = model_of(config.model, training, target)
    if training.aggregator_weights_path:
        found = read_weights_file(training.aggregator_weights_path)
        loaded = import_weights(net, config.model.name, found, head=False)
        log.info("%d tensors of the aggregator from %s", loaded.loaded, training.aggregator_weights_path)
    return net


def model_of(model: ModelConfig, training: TrainingConfig, target: Target) -> SlideModel:
    """The network without its weights. UserError for arguments that the model does not have."""
    head, options = head_of(training, target)
    return build_model(model.name, target.dim, head, options, checkpointing=model.checkpointing, **model.arguments)


def head_of(training: TrainingConfig, target: Target) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of the head. Weights of classes are the inverse of their share, of mean 1 over slides."""
    loss = training.loss
    if target.task == REGRESSION:
        mean, std = target.scale
        return "regression", {"names": (target.label,), "mean": (mean,), "std": (std,)}
    if target.task == SURVIVAL:
        return "cox", {"ties": loss.ties}
    if target.task == ORDINAL:
        return "ordinal", {"names": target.classes}
    weights = None
    if loss.class_weights == "inverse":
        if not all(target.counts):
            missing = target.classes[target.counts.index(0)]
            message, expected = "a class has no training slide", "training.loss.class_weights=none"
            raise UserError(message, key="training.loss.class_weights", found=missing, expected=expected)
        weights = [sum(target.counts) / (len(target.counts) * count) for count in target.counts]
    options = {"names": target.classes, "loss": loss.kind, "class_weights": weights}
    return "classes", {**options, "smoothing": loss.smoothing, "gamma": loss.focal_gamma}


def initial_digest(config: RunConfig) -> str:
    """The digest of the file whose weights the aggregator starts from. MissingFile if it is not there."""
    path = config.training.aggregator_weights_path
    if not path:
        if config.training.freeze_aggregator:
            expected = "training.aggregator_weights_path=FILE, or training.freeze_aggregator=false"
            raise UserError("a frozen aggregator needs weights", key="training.freeze_aggregator", expected=expected)
        return SEEDED
    return weights_digest(path)
