"""Saves and loads a trained slide model: weights, architecture, what it predicts, and what its features must be.

An artifact of the kind `MIL` (pathray.store.artifact_kind), described by ``mil.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mil.config import LossConfig, ModelConfig, RunConfig, TrainingConfig
from mil.model.build import model_of
from mil.model.slide_model import SlideModel
from mil.target import Target
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind

__all__ = ["DESCRIPTION", "MIL", "WEIGHTS", "Trained", "load", "save"]

DESCRIPTION = "mil.json"
KEYS = frozenset(("model", "loss", "target", "encoder"))


def _build(description: Mapping[str, Any]) -> SlideModel:
    model = ModelConfig(**description["model"])
    return model_of(model, TrainingConfig(loss=LossConfig(**description["loss"])), target_in(description))


MIL: ArtifactKind[SlideModel] = ArtifactKind("slide model", DESCRIPTION, KEYS, _build, always_sealed=True)


@dataclass(frozen=True)
class Trained:
    """A network (evaluation mode, on the CPU, without gradients) and what it was built for."""

    net: SlideModel
    target: Target
    description: Mapping[str, Any]


def save(
    folder: str, net: SlideModel, config: RunConfig, target: Target, provenance: Mapping[str, Any], encoder: str = ""
) -> None:
    """Write into `folder` (path or URL) and replace what is there. `encoder`: digest of the encoder's weights."""
    own = {
        "model": asdict(config.model) | {"checkpointing": False},
        "loss": asdict(config.training.loss),
        "target": asdict(target),
        "encoder": encoder,
    }
    MIL.save(folder, net, own, provenance)


def load(folder: str) -> Trained:
    """The model in `folder`. MissingFile if there is none; UserError if it was altered or is from a newer version."""
    net, description = MIL.load(folder)
    return Trained(net, target_in(description), description)


def target_in(description: Mapping[str, Any]) -> Target:
    given = description["target"]
    mean, std = given["scale"]
    classes, counts = tuple(given["classes"]), tuple(given["counts"])
    return Target(given["dim"], given["label"], given["task"], classes, (mean, std), counts)
