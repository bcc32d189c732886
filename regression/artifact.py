"""Saves and loads a trained regression: weights, architecture, preprocessing, gene names and their scale.

An artifact of the kind `REGRESSION` (pathray.store.artifact_kind), described by ``regression.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pathray.nn.resnet import ResNet
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind
from regression.model import ExpressionNet, Preprocessing
from regression.normalise import Normaliser

__all__ = ["DESCRIPTION", "REGRESSION", "WEIGHTS", "Trained", "load", "save"]

DESCRIPTION = "regression.json"
KEYS = frozenset(("backbone", "vit", "preprocessing", "normaliser"))


def _build(description: Mapping[str, Any]) -> ExpressionNet:
    is_vit = description["backbone"] == "vit"
    backbone = ViT(ViTConfig(**description["vit"])) if is_vit else ResNet(description["backbone"])
    net = ExpressionNet(backbone, len(Normaliser.of(description["normaliser"]).genes))
    preprocessing_in(description)
    return net


REGRESSION: ArtifactKind[ExpressionNet] = ArtifactKind("regression", DESCRIPTION, KEYS, _build)


@dataclass(frozen=True)
class Trained:
    """A network (evaluation mode, on the CPU), the preprocessing of its inputs, and the scale of its outputs."""

    net: ExpressionNet
    preprocessing: Preprocessing
    normaliser: Normaliser
    description: Mapping[str, Any]


def save(
    folder: str,
    net: ExpressionNet,
    preprocessing: Preprocessing,
    normaliser: Normaliser,
    provenance: Mapping[str, Any],
) -> None:
    """Write into `folder` (path or URL) and replace what is there."""
    backbone = net.backbone
    own = {
        "backbone": "vit" if isinstance(backbone, ViT) else _resnet_name(backbone),
        "vit": asdict(backbone.config) if isinstance(backbone, ViT) else None,
        "preprocessing": asdict(preprocessing),
        "normaliser": normaliser.plain(),
    }
    REGRESSION.save(folder, net, own, provenance)


def load(folder: str) -> Trained:
    """The model in `folder`. MissingFile if there is none; UserError if it was altered or is from a newer version."""
    net, description = REGRESSION.load(folder)
    return Trained(net, preprocessing_in(description), Normaliser.of(description["normaliser"]), description)


def preprocessing_in(description: Mapping[str, Any]) -> Preprocessing:
    given = description["preprocessing"]
    return Preprocessing(tuple(given["mean"]), tuple(given["std"]), given["size"], given["mpp"])


def _resnet_name(backbone: ResNet) -> str:
    return "resnet18" if backbone.dim == 512 else "resnet50"
