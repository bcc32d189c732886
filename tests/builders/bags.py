"""Bags of features as files, in the layouts of several tools, and cohorts of them with planted witnesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_bag(
    path: Path,
    features: np.ndarray,
    coords: np.ndarray | None = None,
    *,
    key: str = "features",
    whole: dict[str, Any] | None = None,
    of_coords: dict[str, Any] | None = None,
) -> Path:
    """An H5 file; `whole` and `of_coords` are the attributes of the file and of its coords."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = features
        file.attrs.update(whole or {})
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(of_coords or {})
    return path


def grid_coords(n: int, seed: int = 0, side: int = 512) -> np.ndarray:
    """Corners `[n, 2]` of distinct tiles on a square grid, in random order."""
    width = int(np.ceil(np.sqrt(2 * n)))
    cells = np.random.default_rng(seed).choice(width * width, n, replace=False)
    return np.stack([cells % width, cells // width], axis=1).astype(np.int64) * side


def random_bag(path: Path, n: int, dim: int = 8, seed: int = 0) -> Path:
    """A bag of TRIDENT's layout with normal features."""
    features = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return write_bag(path, features, grid_coords(n, seed), of_coords={"patch_size": 256, "patch_size_level0": 512})
