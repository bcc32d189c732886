"""Small slide models that were never trained, and their artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mil.artifact import Trained, load, save
from mil.config import LossConfig, ModelConfig, RunConfig, TrainingConfig
from mil.model.build import model_of
from mil.target import Target

WIDTH, CLASSES = 8, ("tumor", "normal", "adenoma")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "transmil": {"heads": 2, "landmarks": 64},  # more than a short bag has tokens
    "perceiver": {"latents": 4, "heads": 2},
    "bimamba2": {"layers": 1, "state": 8, "head_dim": 8},
    "vit_alibi": {"layers": 1, "heads": 1},
    "multihead_abmil": {"heads": 3},
    "dtfd": {"pseudo_bags": 4},
}


def write_slide_model(
    folder: Path | str, name: str = "abmil", *, target: Target | None = None, seed: int = 0
) -> Trained:
    """The artifact of a model of the kind `name`, of three classes unless a target is given."""
    model = ModelConfig(name, {"embed_dim": 16, **ARGUMENTS.get(name, {})})
    target = target or Target(WIDTH, "label", classes=CLASSES, counts=(5, 4, 3))
    config = RunConfig(model=model, training=TrainingConfig(loss=LossConfig()))
    torch.manual_seed(seed)
    net = model_of(model, config.training, target)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.add_(torch.randn_like(parameter))  # so that classes differ
    save(str(folder), net, config, target, {"images_seen": 12}, encoder="e" * 64)
    return load(str(folder))
