"""What a training has made of its weights, to compare runs bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pathray.store import checkpoint


def newest_weights(run: Path | str, tag: str) -> tuple[int, str]:
    """Images seen by the newest checkpoint of a run folder, and the digest of its tensors."""
    newest = checkpoint.latest(f"{run}/checkpoints", tag)
    assert newest is not None, f"no checkpoint in {run}"
    tensors, meta = checkpoint.load(newest.path)
    return meta["images_seen"], state_hash(tensors)


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """One digest of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
