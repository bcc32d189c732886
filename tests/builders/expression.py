"""Small images whose colour says what is expressed in them, with their table, split and plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pathray.data.plan import Plan
from pathray.data.splits import Split, holdout
from pathray.nn.vit import ViT, vit_config
from pathray.store.artifact import EncoderArtifact
from regression.config import RunConfig
from regression.plan import build_plan
from regression.tables.table import Table, read_table


def write_images(folder: Path, rows: int = 24, genes: int = 3, groups: int = 6, side: int = 32) -> str:
    """`rows` PNGs of noise around a colour, and a table whose genes are linear in that colour; the table's path."""
    g = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    mix = g.normal(size=(3, genes))
    lines = ["path,group_id," + ",".join(f"y{k}" for k in range(genes))]
    for i in range(rows):
        colour = g.uniform(0.2, 0.8, size=3)
        pixels = np.clip(colour + 0.05 * g.normal(size=(side, side, 3)), 0, 1)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(folder / f"{i:03d}.png")
        values = 5 + 3 * colour @ mix + 0.01 * g.normal(size=genes)
        lines.append(f"{i:03d}.png,p{i % groups}," + ",".join(f"{v:.6f}" for v in values))
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def made(folder: Path, seed: int = 0, **options: int) -> tuple[Table, Split, Plan]:
    """Images, their table, a split 0.5 / 0.25 / 0.25 and the plan, below `folder`."""
    table = read_table(write_images(folder / "images", **options))
    split = holdout(table, seed, train=0.5, val=0.25, test=0.25)
    return table, split, build_plan(table, split, str(folder / "plan"))


def run_config(backbone: str = "vit_tiny", genes: int = 3, **train: object) -> RunConfig:
    config = RunConfig()
    config.data.target_dim, config.data.image_size = genes, 32
    config.model.backbone = backbone
    config.train.amp, config.train.lr = "none", 1e-3
    for key, value in train.items():
        assert hasattr(config.train, key), key
        setattr(config.train, key, value)
    return config


def save_random_encoder(folder: Path, size: int = 32) -> None:
    """An encoder artifact that nobody has trained."""
    vit = ViT(vit_config("vit_tiny", img_size=(size, size), dim=24, depth=1, heads=2))
    preprocessing = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": size, "mpp": 0.5}
    EncoderArtifact.save(str(folder), vit, preprocessing=preprocessing, science="ijepath", provenance={})
