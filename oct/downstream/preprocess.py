"""The encoder of an artifact with the inputs that it was trained on: its own grid and its own normalisation.

Nothing of a config can change them: a probe whose inputs differ from pretraining's measures something else. Not here:
where volumes are (oct.downstream.features).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oct.augment import box_mask, normalise
from oct.dicom.resample import CENTRE, read_volume
from oct.indexing.manifest import Spacing
from oct.volume import CENTER, CROPS, GREY, Grid, Sampled, VolumeHeader
from pathray.errors import UserError
from pathray.nn.vit import ViT
from pathray.store.artifact import EncoderArtifact, describe

_ALONE = threading.Lock()
KNOWN = {"normalise": "volume_inside", "grey": GREY, "layout": "NCDHW"}


@dataclass(frozen=True)
class Preprocessing:
    """`grid` of the volumes; then z-scored over the voxels of each volume, then (x − mean) / std inside of it."""

    grid: Grid
    mean: float
    std: float

    @classmethod
    def of(cls, description: Mapping[str, Any], where: str) -> Preprocessing:
        """That of an artifact. UserError for an encoder that was not trained on OCT volumes by this package."""
        given = description["preprocessing"]
        for key, known in KNOWN.items():
            if given.get(key) != known:
                message, expected = "not an encoder of OCT volumes", f"{known}, as ray_jobs.pretrain_oct exports it"
                raise UserError(
                    message, file=where, key=f"preprocessing.{key}", found=given.get(key), expected=expected
                )
        if (crop := given.get("crop", CENTER)) not in CROPS:
            message, key = "the encoder's volumes are cropped in an unknown way", "preprocessing.crop"
            raise UserError(message, file=where, key=key, found=crop, expected=f"one of {CROPS}, or a newer version")
        (d, h, w), (dz, dy, dx) = given["size"], given["spacing_mm"]
        return cls(Grid((d, h, w), (dz, dy, dx), crop), float(given["mean"][0]), float(given["std"][0]))

    def read(
        self, path: str, spacing: Spacing, read: Callable[[str], bytes], crop: tuple[float, float, float] = CENTRE
    ) -> Sampled:
        """A volume on the grid. UnreadableUnit, UnreachableUnit."""
        return read_volume(path, self.grid, crop, spacing, read=read)[0]

    def read_with_header(
        self, path: str, spacing: Spacing, read: Callable[[str], bytes]
    ) -> tuple[Sampled, VolumeHeader]:
        """The same, and what the file says of itself."""
        return read_volume(path, self.grid, CENTRE, spacing, read=read)

    def inputs(self, image: Tensor, inside: Tensor) -> Tensor:
        """int16 `[B, D, H, W]` and boxes `[B, 3, 2]` → what the encoder takes, float32 `[B, 1, D, H, W]`."""
        x = normalise(image, inside)
        return self.scale(x.unsqueeze(1), inside)

    def scale(self, x: Tensor, inside: Tensor) -> Tensor:
        """The last step alone, of z-scored volumes `[B, 1, D, H, W]`."""
        if (self.mean, self.std) == (0.0, 1.0):
            return x
        return (x - self.mean) / self.std * box_mask(inside, x.shape[2:]).unsqueeze(1)


def check_encoder(folder: str) -> dict[str, Any]:
    """The description of an encoder of OCT volumes. MissingFile, UserError."""
    description = describe(folder)
    Preprocessing.of(description, folder)
    return description


def load_encoder(folder: str, weights: str = "pretrained", seed: int = 0, **changes: Any) -> tuple[ViT, Preprocessing]:
    """The encoder of an artifact, or with weights=random one of the same architecture whose weights follow from the
    seed, with its preprocessing. `changes` of the architecture may not change its tensors (drop_path, checkpointing).
    torch's global random state does not change."""
    from dataclasses import replace

    with _ALONE, torch.random.fork_rng(devices=[]):
        pretrained, description = EncoderArtifact.load(folder)
        given = Preprocessing.of(description, folder)
        torch.manual_seed(seed)
        encoder = ViT(replace(pretrained.config, **changes))
    if weights == "pretrained":
        encoder.load_state_dict(pretrained.state_dict())
    return encoder.eval(), given


def patch_tokens(encoder: ViT, x: Tensor) -> Tensor:
    """Tokens `[B, N, D]` of the volumes' patches, without prefix tokens, in float32."""
    tokens: Tensor = encoder(x)
    return tokens[:, encoder.num_prefix :].float()


def pool_tokens(tokens: Tensor, grid: Sequence[int], pool: Sequence[int]) -> Tensor:
    """`[B, N, D]` → `[B, M, D]`: means over blocks of `pool` tokens per axis; blocks at the end may be smaller."""
    if tuple(pool) == (1, 1, 1):
        return tokens
    x = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    size = [min(p, n) for p, n in zip(pool, grid, strict=True)]
    out = torch.nn.functional.avg_pool3d(x, size, size, ceil_mode=True, count_include_pad=False)
    return out.flatten(2).transpose(1, 2)
