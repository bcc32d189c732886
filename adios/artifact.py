"""Saves and loads a trained mask model: weights, architecture and normalisation in one folder.

An artifact of the kind `MASK_MODEL` (pathray.store.artifact_kind), described by ``mask_model.json``. A checkpoint of a
run holds the same network and more, and `load` accepts either, so every checkpoint can be evaluated. Not here: the
student, which is an encoder artifact (pathray.store.artifact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from adios.mask_models import MaskModel, MaskModelConfig
from pathray.errors import UserError
from pathray.nn.stain import constant
from pathray.store.artifact_kind import ArtifactKind
from pathray.store.checkpoint import check_tensors
from pathray.store.checkpoint import load as load_checkpoint
from pathray.store.committed import COMMITTED
from pathray.store.storage import Storage

DESCRIPTION = "mask_model.json"
KEYS = frozenset(("model", "mean", "std"))
FOLDER = "mask_model"  # of a run
PREFIX = "model.mask_model."  # of its tensors in a checkpoint


def _build(description: Mapping[str, Any]) -> MaskModel:
    return MaskModel(MaskModelConfig(**description["model"]))


MASK_MODEL: ArtifactKind[MaskModel] = ArtifactKind("mask model", DESCRIPTION, KEYS, _build)


class TrainedMaskModel(nn.Module):
    """A mask model with the normalisation of its training."""

    def __init__(self, model: MaskModel, mean: Sequence[float], std: Sequence[float], facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, tuple(mean), tuple(std)
        self.facts = dict(facts)  # images_seen, step … of its checkpoint

    @property
    def config(self) -> MaskModelConfig:
        return self.model.config

    @torch.no_grad()
    def masks(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, H, W, 3]` (RGB), or normalised float `[B, 3, H, W]` -> masks float32 `[B, N, H, W]`, a
        softmax over N. Computed on the module's device, without gradients or random numbers.

        UserError for an unsupported image size: `vit_unet` takes multiples of 16, `adios` only squares of
        `config.image_size`.
        """
        images = images.to(next(self.parameters()).device)
        if images.dtype == torch.uint8:
            images = normalise(images, self.mean, self.std)
        return self.model.masks(images)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[B, H, W, 3]` -> float32 `[B, 3, H, W]`, (x / 255 − mean) / std per colour."""
    x = pixels.movedim(-1, 1).to(torch.float32) / 255.0
    shift, scale = constant(tuple(mean), x.device), constant(tuple(std), x.device)
    return (x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)


def save(
    folder: str, model: MaskModel, mean: Sequence[float], std: Sequence[float], provenance: Mapping[str, Any]
) -> None:
    """Write into `folder` (path or URL) and replace what is there."""
    own = {"model": asdict(model.config), "mean": list(mean), "std": list(std)}
    MASK_MODEL.save(folder, model, own, provenance)


def load(folder: str) -> TrainedMaskModel:
    """The mask model in `folder` (path or URL): an artifact, or a committed checkpoint of an ADIOS run.

    On the CPU, in evaluation mode, without gradients. MissingFile if there is neither; UserError if it was altered, is
    from a newer version or has another architecture.
    """
    store = Storage.of(folder)
    if not store.exists(DESCRIPTION) and store.exists(COMMITTED):
        return _of_checkpoint(folder)
    model, description = MASK_MODEL.load(folder)
    trained = TrainedMaskModel(model, description["mean"], description["std"], description["provenance"])
    return trained.eval()


def config_in(values: Mapping[str, Any]) -> MaskModelConfig:
    """The mask model's config from the identity values of a run (flat, by dotted key)."""
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
    model = MaskModel(config_in(values))
    check_tensors(own, model.state_dict(), source=folder)
    model.load_state_dict(own)
    trained = TrainedMaskModel(model, values["data.mean"], values["data.std"], facts)
    return trained.requires_grad_(False).eval()
