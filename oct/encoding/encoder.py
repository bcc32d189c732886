"""A trained encoder of OCT volumes: a DICOM file in, its pooled features and its grid of tokens out.

    encoder = load_encoder("outputs/oct/encoder")
    features = encoder.embed("volume.dcm")
    features.pooled, features.tokens  # [D], [T_slow, T_depth, T_scan, D]

Grid, crop and normalisation are the artifact's own. Probes and extraction use the same class. Not here: features of
many volumes (ray_jobs.extract_features), what is fitted to features (oct.downstream).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oct.downstream.preprocess import Preprocessing
from oct.indexing.manifest import Spacing
from oct.volume import Sampled, Triple, VolumeHeader
from pathray.device import Device
from pathray.errors import UserError
from pathray.features.encoder import PRECISIONS, EncoderSpec, check_same
from pathray.features.kinds import POOLINGS
from pathray.store.artifact import EncoderArtifact
from pathray.wsi.backends.source import read_source

if TYPE_CHECKING:
    from torch import Tensor

    from pathray.nn.vit import ViT

Singles = npt.NDArray[np.float32]
UNKNOWN: Spacing = (None, None, None)


class VolumeSpec(EncoderSpec):
    """The description of an encoder of OCT volumes, with its name. `of` raises UserError for any other encoder."""

    @property
    def given(self) -> Preprocessing:
        return Preprocessing.of(self.description, self.path)

    def _check(self) -> None:
        _ = self.given


@dataclass(frozen=True)
class VolumeFeatures:
    """pooled `[D]` (`[2 D]` for cls+mean), tokens `[T_slow, T_depth, T_scan, D]`, float32; token_mm: the size of a
    token per axis, NaN on an axis that was fitted to the grid. sampled, header: the volume on the grid, and its file's.
    """

    pooled: Singles
    tokens: Singles
    token_mm: Triple
    sampled: Sampled
    header: VolumeHeader


class VolumeEncoder:
    """An encoder on a device, in evaluation mode, without gradients."""

    def __init__(
        self, vit: ViT, given: Preprocessing, device: Device, *, pooling: str = "mean", precision: str = "fp32"
    ) -> None:
        assert pooling in POOLINGS and precision in PRECISIONS, (pooling, precision)
        self.vit = vit.requires_grad_(False).eval().to(device.torch_device)
        self.given, self.device, self.pooling, self.precision = given, device, pooling, precision

    def embed(
        self, path: str | os.PathLike[str], spacing_mm: Spacing = UNKNOWN, read: Callable[[str], bytes] = read_source
    ) -> VolumeFeatures:
        """Features of the volume in a file or at a URL. spacing_mm: (dz, dy, dx) for axes of which the file says
        nothing. UnreadableUnit, saying why, for what is no volume; UnreachableUnit."""
        return self.encode(*self.given.read_with_header(os.fspath(path), spacing_mm, read))

    def encode(self, sampled: Sampled, header: VolumeHeader) -> VolumeFeatures:
        """Features of a volume that is on the encoder's grid."""
        tokens = self.all_tokens(sampled)
        patches = tokens[0, self.vit.num_prefix :].cpu().numpy().reshape(*self.grid(sampled), -1)
        z, y, x = (mm * n for mm, n in zip(sampled.spacing_mm, self.vit.config.patch_size, strict=True))
        return VolumeFeatures(self.pool(tokens)[0].cpu().numpy(), patches, (z, y, x), sampled, header)

    def grid(self, sampled: Sampled) -> tuple[int, ...]:
        """Tokens per axis."""
        return self.vit.grid(sampled.image.shape)

    def all_tokens(self, sampled: Sampled) -> Tensor:
        """`[1, P+N, D]` float32 on the device, prefix tokens first."""
        import torch

        with torch.no_grad():
            placed = self.device.to_device({"image": sampled.image[None], "inside": sampled.inside[None]})
            x = self.given.inputs(placed["image"], placed["inside"])
            with self.device.autocast(self.precision):
                tokens: Tensor = self.vit(x)
            return tokens.float()

    def pool(self, tokens: Tensor) -> Tensor:
        """`[B, P+N, D]` → `[B, D]`: the mean over the patches; cls, cls+mean: with the class token, which is first."""
        import torch

        mean = tokens[:, self.vit.num_prefix :].mean(dim=1)
        if self.pooling == "mean":
            return mean
        return tokens[:, 0] if self.pooling == "cls" else torch.cat([tokens[:, 0], mean], dim=1)


def load_encoder(
    folder: str | os.PathLike[str], *, device: str = "auto", pooling: str = "mean", precision: str = "fp32"
) -> VolumeEncoder:
    """The encoder in a folder or at a URL, as ray_jobs.pretrain_oct exports it (`RUN/encoder`).

    device: auto | cpu | cuda. pooling: mean (of the patches' tokens) | cls | cls+mean. precision: fp32 | bf16 | fp16.
    MissingFile; UserError for a damaged one, one of anything but OCT volumes, or without what `pooling` wants.
    """
    for key, found, allowed in (("pooling", pooling, POOLINGS), ("precision", precision, PRECISIONS)):
        if found not in allowed:
            raise UserError(f"unknown {key}", key=key, found=found, expected=" or ".join(allowed))
    path = os.fspath(folder)
    spec = VolumeSpec.of(path.rstrip("/").rpartition("/")[2] or "encoder", path)
    return encoder_of(spec, Device.of(device), pooling=pooling, precision=precision)


def encoder_of(spec: EncoderSpec, device: Device, *, pooling: str, precision: str) -> VolumeEncoder:
    """The encoder of a spec. UserError where the artifact was replaced since the spec was read, too."""
    spec.dim(pooling)
    pooling = spec.pooling(pooling)
    vit, description = EncoderArtifact.load(spec.path)
    check_same(spec, description)
    return VolumeEncoder(vit, Preprocessing.of(description, spec.path), device, pooling=pooling, precision=precision)
