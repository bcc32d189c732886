"""A pretraining science in one file: hide patches of a tile, and predict their mean colours from the patches around.

    python examples/new_science.py --slides slides/*.svs --output outputs/colours

A masked autoencoder of the toy kind. What it shows is what a science is made of: a config, a plan (which units there
are), a reader (a unit's pixels), a recipe (modules and loss), and an assembly of these, which `pathray.train` trains:
interrupt it and run it again, and it resumes, to the bit. Without arguments small slides are generated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

import generated
import pathray
from pathray.config.load import fingerprint, placement
from pathray.data.order import rng, uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.device import Device
from pathray.nn.vit import ViT, ViTConfig
from pathray.optim.schedules import Schedule
from pathray.store.artifact import Encoder
from pathray.train.assembly import Assembly
from pathray.train.recipe import Loss
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.wsi.handles import HandleCache
from pathray.wsi.regions import read_region
from pathray.wsi.tiling import TileSpec, tiles_of


@dataclass
class ColourConfig:
    """All that a run depends on is its identity, which must not change on resume; placement may."""

    seed: int = 0
    tile_px: int = 64
    mpp: float = 1.0
    patch_px: int = 16
    hidden: float = 0.5  # share of a tile's patches
    global_batch: int = 16
    images: int = 1280
    lr: float = 1e-3
    micro_batch: int = placement(16)


def build_plan(slides: list[str], config: ColourConfig, folder: Path) -> Plan:
    """A row per tile with tissue: references only, no pixels. The slides are the sources that the rows point into."""
    spec, rows, mpps = TileSpec(config.tile_px, config.mpp), [], []
    for number, path in enumerate(slides):
        with pathray.open_slide(path) as slide:
            tiles = tiles_of(pathray.tissue(slide).mask, *slide.size, slide.mpp, spec)
            rows += [(number, x, y) for x, y in tiles.centres()]
            mpps.append(slide.mpp)
    columns = dict.fromkeys(("source", "x", "y"), np.int32)
    with PlanWriter(folder, columns, pa.table({"path": slides, "mpp": mpps})) as writer:
        writer.append(dict(zip(columns, np.array(rows, np.int64).T, strict=True)))
    return Plan.open(folder)


class ColourReader:
    """A unit of the plan → a tile and which of its patches are hidden. Threads share it, and it travels to workers."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(self, config: ColourConfig, plan: Plan) -> None:
        self.config, self.slides = config, HandleCache()
        self.paths, self.mpps = (plan.sources[name].to_pylist() for name in ("path", "mpp"))

    def read(self, unit, position, attempt):
        """image uint8 [S, S, 3] · hidden bool [N]. All that is random comes from the position, so that a resumed run
        sees the same. An unreadable tile raises UnreadableUnit, and another takes its place."""
        config, source = self.config, int(unit["source"])
        reader, patches = self.slides.get(self.paths[source]), (config.tile_px // config.patch_px) ** 2
        region = read_region(reader, unit["x"], unit["y"], config.tile_px, config.mpp, mpp0=self.mpps[source])
        order = rng(config.seed, "hidden", position, attempt).permutation(patches)
        return {"image": region.pixels, "hidden": order < round(config.hidden * patches)}

    def collate(self, units):
        return {name: np.stack([unit[name] for unit in units]) for name in units[0]}


class ColourRecipe:
    """Modules and mathematics; nothing of devices, files or Ray. The loop owns batches, optimizer and checkpoints."""

    def __init__(self, config: ColourConfig) -> None:
        torch.manual_seed(config.seed)  # equal on every worker
        size, patch = (config.tile_px,) * 2, (config.patch_px,) * 2
        self.vit = ViT(ViTConfig(img_size=size, patch_size=patch, dim=96, depth=2, heads=3))
        self.modules = nn.ModuleDict({"vit": self.vit, "head": nn.Linear(96, 3)})
        self.params = {"model": list(self.modules.named_parameters())}

    def phases(self, step):
        return ("model",)

    def prepare(self, micro, progress):
        return {**micro, "image": micro["image"].movedim(-1, 1).float() / 127.5 - 1}

    def loss(self, phase, micro, progress):
        """Σ over the hidden patches of (predicted − true mean colour)², weight = how many they are."""
        image, hidden = micro["image"], micro["hidden"]  # [B, 3, S, S], [B, N]
        patches = self.vit.patch_embed.patches(image)  # [B, N, 3·P·P], colours first
        colours = patches.unflatten(2, (3, -1)).mean(dim=3)  # [B, N, 3]
        side = self.vit.config.grid[0]
        cover = hidden.unflatten(1, (1, side, side)).float()  # [B, 1, side, side]
        seen = image * (1 - nn.functional.interpolate(cover, image.shape[2:]))  # hidden patches are grey
        error = (self.modules["head"](self.vit(seen)) - colours).square().mean(dim=2)
        return Loss((error * hidden).sum(), hidden.sum(), {"error": error[hidden].mean().detach()})

    def after_step(self, progress):
        pass

    def signals(self):
        return {}


def assemble(config: ColourConfig, plan: Plan) -> Assembly:
    """The parts of one run, for `pathray.train` or a job's workers."""
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": config.tile_px, "mpp": config.mpp}
    recipe, (seed, batch) = ColourRecipe(config), (config.seed, config.global_batch)
    optim = {"model": PhaseOptim(lr=Schedule("cosine", config.lr, config.lr / 10))}
    return Assembly(
        science="colours",
        tag="colours",
        recipe=recipe,
        settings=LoopSettings(seed, batch, config.micro_batch, config.images, optim, log_every=4 * batch),
        order=uniform_order(plan.rows, seed),
        reader=ColourReader(config, plan),
        identity=fingerprint({**fingerprint(config)["values"], "plan": plan.units_hash}),
        placement=fingerprint(config, placement=True),
        export=lambda recipe, folder, facts: Encoder(recipe.vit, preprocessing, "colours", {}).save(folder, facts),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", nargs="+")
    parser.add_argument("--output", default="outputs/colours", type=Path)
    given, config = parser.parse_args(), ColourConfig()
    made = (generated.slide(given.output / f"{name}.tiff", centre=name) for name in generated.STAINS)
    plan = build_plan(given.slides or list(map(str, made)), config, given.output / "plan")
    outcome = pathray.train(assemble(config, plan), plan, str(given.output), Device.of("auto"))
    print(f"{outcome.end} after {outcome.images_seen} tiles; metrics are in {given.output}/metrics.jsonl")
    print(pathray.load_encoder(outcome.artifact))
