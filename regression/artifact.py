"""A trained regression for whoever predicts with it: weights, architecture, preprocessing, gene names, their scale.

``weights.safetensors`` and ``regression.json`` (written last). Nothing of training stays in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pathray.errors import UserError
from pathray.nn.resnet import ResNet
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact import read_description, read_weights
from pathray.store.checkpoint import check_tensors, cpu_copy
from pathray.store.records import sealed, text
from pathray.store.storage import Storage, digest_of
from regression.model import ExpressionNet, Preprocessing
from regression.normalise import Normaliser

SCHEMA_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "regression.json"
KEYS = frozenset(("schema_version", "backbone", "vit", "preprocessing", "normaliser", "sha256", "provenance"))


@dataclass(frozen=True)
class Trained:
    """A network (evaluation mode, on the CPU), what its inputs look like, and how its outputs become expression."""

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
    """Write into `folder` (path or URL), replacing what is there."""
    from safetensors.torch import save_file

    store, backbone = Storage.of(folder), net.backbone
    store.remove(DESCRIPTION)  # a half-replaced artifact is no artifact
    with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
        weights = Path(temporary) / WEIGHTS
        save_file(cpu_copy(net.state_dict()), weights)
        digest = digest_of(weights)
        store.put(weights, WEIGHTS)
    vit = asdict(backbone.config) if isinstance(backbone, ViT) else None
    description = sealed(
        {
            "schema_version": SCHEMA_VERSION,
            "backbone": "vit" if isinstance(backbone, ViT) else _resnet_name(backbone),
            "vit": vit,
            "preprocessing": asdict(preprocessing),
            "normaliser": normaliser.plain(),
            "sha256": digest,
            "provenance": dict(provenance),
        }
    )
    store.write_bytes(DESCRIPTION, text(description))


def load(folder: str) -> Trained:
    """MissingFile when there is none; UserError when it was altered or is of a newer version."""
    store = Storage.of(folder)
    description = read_description(folder, DESCRIPTION, "regression", SCHEMA_VERSION, KEYS)
    tensors = read_weights(store, description["sha256"])
    try:
        return _built(description, tensors, store.join(WEIGHTS))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        where, found = store.join(DESCRIPTION), f"{type(e).__name__}: {e}"[:200]
        expected = "the file as the run wrote it: export or copy it again"
        raise UserError("not a description of a regression", file=where, found=found, expected=expected) from e


def _built(description: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> Trained:
    is_vit = description["backbone"] == "vit"
    backbone = ViT(ViTConfig(**description["vit"])) if is_vit else ResNet(description["backbone"])
    normaliser = Normaliser.of(description["normaliser"])
    net = ExpressionNet(backbone, len(normaliser.genes))
    check_tensors(tensors, net.state_dict(), source=source)
    net.load_state_dict(tensors)
    given = description["preprocessing"]
    shape = Preprocessing(tuple(given["mean"]), tuple(given["std"]), given["size"], given["mpp"])
    return Trained(net.requires_grad_(False).eval(), shape, normaliser, description)


def _resnet_name(backbone: ResNet) -> str:
    return "resnet18" if backbone.dim == 512 else "resnet50"
