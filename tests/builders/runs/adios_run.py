"""A small ADIOS run without files: its config, and random patches as adios.data gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from adios.augment import count_draws
from adios.config import (
    CropConfig,
    DataConfig,
    MaskModelSettings,
    OptimizationConfig,
    RunConfig,
    StudentConfig,
    resolve,
)
from pathray.data.order import rng

SIZE = 32
SMALL: dict[str, Any] = {
    "arch": "vit_tiny",
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mask_model_type": "adios",  # which is much the quicker
    "batch_size_per_gpu": 4,
    "total_iterations": 6,
    "lr": 1e-3,
    "viz_freq": 0,
}


def config(**changes: Any) -> RunConfig:
    """32-pixel patches, a student of two blocks, G = 4; `changes` are fields of the run config."""
    values = {
        **SMALL,
        "data": DataConfig(patch_px=SIZE, image_size=SIZE),
        "crops": CropConfig(size=16),
        "student": StudentConfig(head=[16, 16, 8], drop_path=0.2),
        "mask_model": MaskModelSettings(channels=8, dim=16, depth=4, heads=1, drop_path=0.2),
        "optimization": OptimizationConfig(warmup_iterations=2),
        **changes,
    }
    return resolve(RunConfig(**values), workers=1)


def batch(run: RunConfig, first: int, count: int) -> dict[str, Any]:
    """The patches at positions `first` …: smooth colours of their own, and their draws."""
    images, draws = [], []
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    for position in range(first, first + count):
        g = rng(run.seed, "image", position)
        waves = [np.sin(2 * np.pi * (g.integers(1, 4) * x + g.integers(1, 4) * y) + 6 * g.random()) for _ in range(3)]
        images.append((127 + 60 * np.stack(waves, -1) + g.integers(-40, 40, 3)).clip(0, 255).astype(np.uint8))
        draws.append(rng(run.seed, "augment", position).random(count_draws(run), np.float32))
    position = np.arange(first, first + count)
    return {"image": np.stack(images), "draws": np.stack(draws), "position": position, "corrupt": 0}


def stream(run: RunConfig, rank: int = 0, world: int = 1) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches of one rank for pathray.train.loop."""
    assert run.global_batch is not None
    total, share = run.global_batch, run.global_batch // world

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step in range(start // total, 10**9):
            yield batch(run, step * total + rank * share, share)

    return batches
