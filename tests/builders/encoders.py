"""Small encoder artifacts for tests: a ViT with random weights that are as large as trained ones'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact import EncoderArtifact

MEAN, STD = [0.7, 0.55, 0.7], [0.2, 0.25, 0.2]


def write_encoder(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 32,
    mpp: float | None = 1.0,
    patch: int = 16,
    dim: int = 24,
    cls: bool = False,
    extra: dict[str, Any] | None = None,
    **vit: Any,
) -> str:
    """An artifact in `folder`; its path."""
    torch.manual_seed(seed)
    config = ViTConfig(
        **{"img_size": (size, size), "patch_size": (patch, patch), "dim": dim, "depth": 2, "heads": 2}
        | {"cls_token": cls, "registers": 1, "positions": "learned"}
        | vit
    )
    model = ViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    preprocessing = {"mean": MEAN, "std": STD, "size": size, "mpp": mpp, "layout": "NCHW", **(extra or {})}
    EncoderArtifact.save(
        str(folder), model, preprocessing=preprocessing, science="ijepath", provenance={"run": "a test's"}
    )
    return str(folder)


def plain_features(artifact: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Mean patch tokens ``[N, D]`` of uint8 images, one at a time, preprocessing in float64: the oracle."""
    vit, _ = EncoderArtifact.load(artifact)
    prefix, out = vit.num_prefix, []
    for tile in tiles:
        x = torch.from_numpy(((tile.astype(np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]).float()
        out.append(vit(x)[0, prefix:].mean(dim=0).numpy())
    return np.array(out)
