"""Small OCT volumes out of numbers: a smooth layered pattern per volume, a plan of them, and a reader for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from oct.augment import count_draws
from oct.config import OptimizationConfig, RunConfig, resolve
from oct.masks import MaskSampler
from oct.sections import DataConfig, ModelConfig
from oct.volume import GREY
from pathray.data.order import rng
from pathray.data.plan import Plan, PlanWriter
from pathray.errors import UnreadableUnit

SIZE, PATCH = [8, 32, 32], [2, 8, 8]  # 4 x 4 x 4 tokens
ROWS = 12


def small_config(rows: int = ROWS, workers: int = 1, **sections: Any) -> RunConfig:
    """A resolved config of the smallest model, on grids of `SIZE`."""
    sections.setdefault("data", DataConfig(image_size=SIZE, threads=1))
    sections.setdefault("model", ModelConfig(name="vit_micro", patch_size=PATCH, pred_dim=48, pred_depth=1))
    sections.setdefault("optimization", small_budget())
    return resolve(RunConfig(**sections), workers, rows)


def small_budget(**changes: Any) -> OptimizationConfig:
    values = {"total_images": 32, "global_batch": 4, "batch_size_per_gpu": 2, "warmup": {"iterations": 2}, "lr": 1e-3}
    return OptimizationConfig(**(values | changes))


def volume(number: int, size: list[int] | None = None) -> np.ndarray:
    """int16 `[D, H, W]`: bright layers in depth, bent along both other axes, another bend for every number."""
    g, (d, h, w) = rng(0, "volume", number), size or SIZE
    z, y, x = np.meshgrid(np.arange(d) / d, np.arange(h) / h, np.arange(w) / w, indexing="ij")
    bend = 0.2 * np.sin(2 * np.pi * (x * g.integers(1, 3) + g.random())) + 0.2 * np.sin(np.pi * (z + g.random()))
    layers = np.sin(2 * np.pi * ((2 + g.random()) * y + bend)) + 0.2 * g.standard_normal((d, h, w))
    return ((layers - layers.min()) / np.ptp(layers) * GREY).astype(np.int16)


def unit(config: RunConfig, number: int, position: int, attempt: int = 0) -> dict[str, np.ndarray]:
    """What the reader gives of a volume at a position: its first slices and rows are image, the rest is padding."""
    size = config.data.image_size
    box = np.array([[0, size[0] - number % 3], [number % 5, size[1]], [0, size[2]]], np.int32)
    image = np.zeros(size, np.int16)
    part = tuple(slice(first, last) for first, last in box)
    image[part] = volume(number, size)[part]
    seed = config.data.seed
    draws = rng(seed, "augment", position, attempt).random(count_draws(config), np.float32)
    return {
        "image": image,
        "inside": box,
        "draws": draws,
        **MaskSampler.of(config).sample(rng(seed, "masks", position, attempt)),
    }


class SmallReader:
    """Volumes of a plan made by `write_plan`; those in `broken` cannot be read."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(self, config: RunConfig, broken: tuple[int, ...] = ()) -> None:
        self.config, self.broken = config, broken

    def read(self, row: dict[str, Any], position: int, attempt: int) -> dict[str, np.ndarray]:
        source = int(row["source"])
        if source in self.broken:
            raise UnreadableUnit("truncated", f"volume{source}", "too short")
        return unit(self.config, source, position, attempt)

    def collate(self, units: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack([one[name] for one in units]) for name in units[0]}


def write_plan(folder: Path, rows: int = ROWS, held_out: int = 4) -> Plan:
    """`rows` volumes to train on, and then `held_out` more among the sources."""
    is_held_out = [False] * rows + [True] * held_out
    sources = pa.table({"path": [f"volume{i}" for i in range(len(is_held_out))], "held_out": is_held_out})
    with PlanWriter(folder, {"source": np.int32}, sources) as writer:
        writer.append({"source": np.arange(rows)})
    return Plan.open(folder)


def micro(config: RunConfig, numbers: range) -> dict[str, Any]:
    """Tensors of a micro-batch as the loop places them."""
    import torch

    reader = SmallReader(config)
    batch = reader.collate([unit(config, n, n) for n in numbers])
    return {name: torch.from_numpy(value) for name, value in batch.items()}
