"""Saves and loads a fine-tuned model: weights, architecture, inputs, and what its outputs mean.

An artifact of the kind `MODEL` (pathray.store.artifact_kind), described by ``oct_model.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from oct.downstream.network import VolumeNet
from oct.downstream.preprocess import Preprocessing
from oct.volume import Sampled
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact_kind import ArtifactKind

DESCRIPTION = "oct_model.json"
KEYS = frozenset(("vit", "head", "preprocessing", "classes", "scale"))


def _build(description: Mapping[str, Any]) -> VolumeNet:
    head = description["head"]
    return VolumeNet(ViT(ViTConfig(**description["vit"])), head["outputs"], head["kind"], head["heads"])


MODEL: ArtifactKind[VolumeNet] = ArtifactKind("OCT model", DESCRIPTION, KEYS, _build, always_sealed=True)


@dataclass(frozen=True)
class Trained:
    """A network (evaluation mode, on the CPU) and the inputs it expects. `classes`: none for a regression, whose
    numbers have mean and deviation `scale`."""

    net: VolumeNet
    given: Preprocessing
    classes: tuple[str, ...]
    scale: tuple[float, float]
    description: Mapping[str, Any]

    def predict(self, image: Tensor, inside: Tensor) -> Tensor:
        """Outputs `[B, K]` for int16 volumes `[B, D, H, W]` on the grid, with boxes `[B, 3, 2]`."""
        with torch.no_grad():
            out: Tensor = self.net(self.given.inputs(image, inside)).float()
        return out

    def classify(self, sampled: Sampled) -> dict[str, float]:
        """The probability of each class for one volume on the grid (`given.read`)."""
        assert self.classes, "a regression"
        z = self.predict(torch.from_numpy(sampled.image)[None], torch.from_numpy(sampled.inside)[None])
        return dict(zip(self.classes, z[0].softmax(dim=0).tolist(), strict=True))


def save_model(
    folder: str, net: VolumeNet, preprocessing: Mapping[str, Any], classes: tuple[str, ...],
    scale: tuple[float, float], provenance: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write into `folder` (path or URL) and replace what is there. `preprocessing`: the encoder's, as its artifact
    describes it."""
    outputs = len(classes) or 1
    own = {
        "vit": asdict(net.encoder.config),
        "head": {"kind": net.kind, "outputs": outputs, "heads": getattr(net.head, "heads", 0)},
        "preprocessing": dict(preprocessing),
        "classes": list(classes),
        "scale": list(scale),
    }
    MODEL.save(folder, net, own, provenance)


def load_model(folder: str) -> Trained:
    """The model in `folder`. MissingFile if there is none; UserError if it was altered or is from a newer version."""
    net, description = MODEL.load(folder)
    mean, std = description["scale"]
    given = Preprocessing.of(description, folder)
    return Trained(net, given, tuple(description["classes"]), (mean, std), description)
