"""A trained mask model for whoever looks at its masks: weights, architecture, normalisation, in one folder.

``weights.safetensors`` and ``mask_model.json`` (written last). A checkpoint of a run holds the same network beside all
else, and `load` takes either: so every checkpoint can be judged. The student is an encoder artifact
(pathray.store.artifact).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adios.mask_models import MaskModel, MaskModelConfig
from pathray.errors import UserError
from pathray.nn.stain import constant
from pathray.store.artifact import read_description, read_weights
from pathray.store.checkpoint import check_tensors, cpu_copy
from pathray.store.checkpoint import load as load_checkpoint
from pathray.store.committed import COMMITTED
from pathray.store.records import sealed, text
from pathray.store.storage import Storage, digest_of

SCHEMA_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "mask_model.json"
KEYS = frozenset(("schema_version", "model", "mean", "std", "sha256", "provenance"))
FOLDER = "mask_model"  # of a run
PREFIX = "model.mask_model."  # of its tensors in a checkpoint


class TrainedMaskModel(nn.Module):
    """A mask model with the normalisation that it was trained with."""

    def __init__(self, model: MaskModel, mean: Sequence[float], std: Sequence[float], facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, tuple(mean), tuple(std)
        self.facts = dict(facts)  # images_seen, step … of where it comes from

    @property
    def config(self) -> MaskModelConfig:
        return self.model.config

    @torch.no_grad()
    def masks(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, H, W, 3]` (RGB), or float `[B, 3, H, W]` normalised already -> masks float32
        `[B, N, H, W]`, a softmax over N. Computed where the module is, without gradients, with no random numbers.

        UserError for a size that the network cannot take: `vit_unet` takes multiples of 16, `adios` only squares of
        `config.image_size`.
        """
        images = images.to(next(self.parameters()).device)
        if images.dtype == torch.uint8:
            images = normalised(images, self.mean, self.std)
        return self.model.masks(images)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[B, H, W, 3]` -> float32 `[B, 3, H, W]`, (x / 255 − mean) / std per colour."""
    x = pixels.movedim(-1, 1).to(torch.float32) / 255.0
    shift, scale = constant(tuple(mean), x.device), constant(tuple(std), x.device)
    return (x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)


def save(
    folder: str, model: MaskModel, mean: Sequence[float], std: Sequence[float], provenance: Mapping[str, Any]
) -> None:
    """Write into `folder` (path or URL), replacing what is there."""
    from safetensors.torch import save_file

    store = Storage.of(folder)
    store.remove(DESCRIPTION)  # a half-replaced artifact is no artifact
    with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
        weights = Path(temporary) / WEIGHTS
        save_file(cpu_copy(model.state_dict()), weights)
        digest = digest_of(weights)
        store.put(weights, WEIGHTS)
    description = sealed(
        {
            "schema_version": SCHEMA_VERSION,
            "model": asdict(model.config),
            "mean": list(mean),
            "std": list(std),
            "sha256": digest,
            "provenance": dict(provenance),
        }
    )
    store.write_bytes(DESCRIPTION, text(description))


def load(folder: str) -> TrainedMaskModel:
    """The mask model in `folder` (path or URL): an artifact, or a committed checkpoint of an ADIOS run.

    On the CPU, in evaluation mode, without gradients. MissingFile where there is neither; UserError when it was
    altered, is of a newer version or of another architecture.
    """
    store = Storage.of(folder)
    if not store.exists(DESCRIPTION) and store.exists(COMMITTED):
        return _of_checkpoint(folder)
    description = read_description(folder, DESCRIPTION, "mask model", SCHEMA_VERSION, KEYS)
    tensors = read_weights(store, description["sha256"])
    config = MaskModelConfig(**description["model"])
    return _trained(config, tensors, description["mean"], description["std"], description["provenance"], folder)


def config_in(values: Mapping[str, Any]) -> MaskModelConfig:
    """The mask model of a run from the values of its identity (flat, by dotted key)."""
    return MaskModelConfig(
        kind=values["mask_model_type"],
        num_masks=values["num_masks"],
        image_size=values["data.image_size"],
        channels=values["mask_model.channels"],
        dim=values["mask_model.dim"],
        depth=values["mask_model.depth"],
        heads=values["mask_model.heads"],
        drop_path=values["mask_model.drop_path"],
    )


def _of_checkpoint(folder: str) -> TrainedMaskModel:
    tensors, meta = load_checkpoint(folder)
    own = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
    if not own:
        raise UserError("a checkpoint without a mask model", file=folder, found=meta.get("science"), expected="adios")
    values = meta["identity"]["values"]
    facts = {key: meta[key] for key in ("images_seen", "step")}
    return _trained(config_in(values), own, values["data.mean"], values["data.std"], facts, folder)


def _trained(
    config: MaskModelConfig,
    tensors: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    facts: Mapping[str, Any],
    source: str,
) -> TrainedMaskModel:
    model = MaskModel(config)
    check_tensors(tensors, model.state_dict(), source=source)
    model.load_state_dict(tensors)
    trained = TrainedMaskModel(model, mean, std, facts)
    return trained.requires_grad_(False).eval()
