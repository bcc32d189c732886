"""Does I-JEPATH learn? Probes of H&E patches over the images seen, next to random weights and to colours.

    python benchmarks/learning_ijepath.py                           # three seeds, an hour of two free cores
    python benchmarks/learning_ijepath.py seeds=1 images=24000 curve=curve.jsonl    # rows as they come, then a picture
    python benchmarks/learning_ijepath.py plot=curve.jsonl          # a table and curve.png, also of an unfinished run
    python benchmarks/learning_ijepath.py optimization.lr=1e-3 model.regulariser=none     # any key of a run config

Pretrains with `--config learning` (vit_micro, SIGReg, 96 px contexts at 1.0 mpp, 72 px targets at 0.5 mpp, patches of
12) on the real slides `wsi/*.svs` and on patches without their labels: `patches/tcga_sites` and the training part of
`patches/crc5`. The probes are linear and kNN on the mean of the teacher's patch tokens, by five-fold cross-validation
over all 600 patches of crc5 (5 classes; its index names no patients, so folds are stratified by class only). Intervals
are 95% t intervals over folds. Baselines are the network as initialised, and colour means and deviations alone.

Every `every` images a row tells the probes, the loss, and whether there is learning at all: `explained`, the share of
the targets' variance that predictions explain (0: no more than the batch's mean), RankMe and deviation of targets,
predictions and context features. The same seeds on the same machine give the same figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from omegaconf import OmegaConf
from probes import PROBES, Figures, cross_validated, in_words, probe_panel, renamed
from tissue import Patches, build, colour_features, crc5

from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.data import AnchorReader, ReaderConfig
from ijepath.plan import strata
from ijepath.recipe import IJepathRecipe
from ijepath.settings import encoder_of, loop_settings
from pathray.config.load import load_config
from pathray.data.order import stratified_order
from pathray.data.plan import Plan
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.device import Device
from pathray.draw.charts import Panel, draw_curves
from pathray.stats.bootstrap import paired_difference
from pathray.train.loop import TrainState, run

KINDS = ("target", "prediction", "student")
SIGNALS = ("loss", "explained", *(f"{kind}_{signal}" for signal in ("rankme", "std") for kind in KINDS))
OWN = ("data.max_open_slides=1024", "data.threads=1", "data.sampling_stratum_weights=proportional")


def _kinds_panel(title: str, signal: str) -> Panel:
    return Panel(title, tuple((f"{kind}_{signal}", kind) for kind in KINDS), from_zero=True)


PANELS = (
    probe_panel("Linear probe", "linear"),
    probe_panel("20 nearest neighbours", "knn"),
    Panel("Loss", (("loss", "loss"),), from_zero=True),
    Panel("Learning rate", (("lr", "lr"),), from_zero=True, smooth=False),
    Panel("Explained by the prediction", (("explained", "explained"),), "share, 0: the mean", low=-1.0),
    _kinds_panel("RankMe", "rankme"),
    _kinds_panel("Deviation", "std"),
    Panel("Gradient norm", (("grad_norm", "norm"),), from_zero=True),
)


@dataclass
class Settings:
    """Settings of the benchmark; every other key is one of the run config."""

    data_dir: str = "../shared/data"
    manifest: str | None = None  # train on the slides of this manifest instead, such as the demo's cohort
    seeds: int = 3
    first_seed: int = 0
    config: str = "learning"  # of ijepath/configs, or a file
    images: int = 51_200  # per seed
    every: int = 6_400  # images between rows
    folds: int = 5
    eval_px: int = 108  # crc5 patches are 224 px; this is four times cheaper, and about the spacing of contexts
    part: str = "all"  # train: probe the training part of crc5 only, to choose settings by
    neighbours: int = 20
    threads: int = 2
    output: str | None = None  # JSON of all figures
    curve: str | None = None  # JSON lines, one per row, written as they come; a picture next to it at the end
    plot: str | None = None  # only draw and print such a file
    encoders: str | None = None  # folder for each seed's encoders, as initialised and at the end


def main() -> None:
    own = {f.name for f in fields(Settings)}
    mine = [a for a in sys.argv[1:] if a.partition("=")[0] in own]
    keys = [a for a in sys.argv[1:] if a not in mine]
    merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(mine))
    settings: Any = OmegaConf.to_object(merged)
    if settings.plot:
        draw(Path(settings.plot))
        return
    torch.set_num_threads(settings.threads)
    patches = crc5(Path(settings.data_dir), settings.part)
    floor = cross_validated(colour_features(patches.images), patches, settings.folds, settings.neighbours)
    print(f"colours   {in_words(floor)}", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        plan: Plan | None = None
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            config = run_config(settings.images, settings.every, seed, keys, settings.config)
            plan = plan or build(Path(settings.data_dir), Path(folder), config, settings.manifest)
            results.append(one_seed(config, plan, patches, settings, floor, keys))
    differences = report(results)
    if settings.output:
        figures = {"settings": asdict(settings), "keys": keys, "floor": floor, "seeds": results}
        Path(settings.output).write_text(json.dumps({**figures, "differences": differences}, indent=1))
    if settings.curve:
        draw(Path(settings.curve))


def run_config(images: int, every: int, seed: int, keys: Sequence[str] = (), base: str = "learning") -> RunConfig:
    """The run config of one seed: `base`, over it what these benchmarks need, over it `keys`."""
    own = (f"optimization.total_images_budget={images}", f"training.log_every={every}")
    argv = ("--config", base, *OWN, *own, *keys, f"data.seed={seed}")
    config = load_config(RunConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    return resolve_global_batch(config, 1)


def save_encoder(recipe: IJepathRecipe, folder: Path) -> str:
    """The teacher as an artifact in `folder`."""
    encoder_of(recipe).save(str(folder), {})
    return str(folder)


def one_seed(
    config: RunConfig, plan: Plan, patches: Patches, settings: Settings, floor: Figures, keys: Sequence[str]
) -> list[Figures]:
    """Pretrain one seed: a row before it, and one after every `every` images."""
    recipe, start = IJepathRecipe(config), time.perf_counter()
    first = {"keys": [*keys], "images": settings.images, **renamed(floor, "colours")}
    rows: list[Figures] = []
    if settings.encoders:
        save_encoder(recipe, Path(settings.encoders) / f"random_{config.data.seed}")
    for metrics in chain([{"images_seen": 0.0}], pretrain(recipe, config, plan)):
        found = features(recipe.encoder, config, patches, settings.eval_px)
        probes = cross_validated(found, patches, settings.folds, settings.neighbours)
        if not rows:
            first |= renamed(probes, "random")
        times = {"seed": config.data.seed, "seconds": round(time.perf_counter() - start, 1)}
        rows.append({**times, **first, **metrics, **probes})
        signals = "  ".join(f"{name} {metrics[name]:.3f}" for name in SIGNALS if name in metrics)
        print(
            f"seed {config.data.seed} {metrics['images_seen']:7.0f} images  {in_words(probes)}  {signals}", flush=True
        )
        if settings.curve:
            with Path(settings.curve).open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
    if settings.encoders:
        save_encoder(recipe, Path(settings.encoders) / f"pretrained_{config.data.seed}")
    return rows


def pretrain(recipe: IJepathRecipe, config: RunConfig, plan: Plan) -> Iterator[dict[str, float]]:
    """Train to the budget, yielding the metrics of the log cadence."""
    settings, device = loop_settings(config, 1), Device.of("cpu")
    lookup = Lookup(plan, stratified_order(strata(plan), config.data.seed, config.data.sampling_stratum_weights))
    reader = AnchorReader(ReaderConfig.of(config), plan.sources.to_pydict())

    def batches(start: int) -> Iterator[dict[str, Any]]:
        rows = rank_rows(lookup, start, settings.total_images, settings.global_batch, 0, 1, settings.micro_batch)
        for batch in stream_batches(rows, reader, lookup, DecodeSettings(threads=config.data.threads)):
            del batch["faults"]
            yield batch

    for tick in run(recipe, batches, settings, device=device, state=TrainState(recipe, settings, device)):
        if tick.metrics is not None:
            yield {**tick.metrics, "images_seen": float(tick.images_seen)}


def features(encoder: Any, config: RunConfig, patches: Patches, size: int) -> np.ndarray:
    """Mean patch token `[N, D]` of every evaluation image at `size` pixels."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    rows = []
    encoder.eval()
    with torch.inference_mode():
        for i in range(0, len(patches.images), 16):
            x = torch.from_numpy(patches.images[i : i + 16]).movedim(-1, 1).float() / 255
            if x.shape[-1] != size:
                x = torch.nn.functional.interpolate(x, size=(size, size), mode="area")
            rows.append(encoder((x - mean) / std)[:, encoder.num_prefix :].mean(dim=1).numpy())
    return np.concatenate(rows)


def report(results: Sequence[Sequence[Figures]]) -> dict[str, dict[str, float]]:
    """Print and return the paired differences pretrained − random over seeds."""
    out = {}
    for kind in PROBES:
        before, after = ([rows[i][kind] for rows in results] for i in (0, -1))
        print(f"{kind:<7} random {np.mean(before):.3f}  pretrained {np.mean(after):.3f}", end="  ")
        if len(results) > 1:
            interval = paired_difference(after, before)
            out[kind] = asdict(interval)
            print(f"difference {interval}", end="")
        print()
    return out


def draw(path: Path) -> None:
    """Print the rows of a curve file as a table, and draw the newest seed's as a picture next to it."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    newest = [row for row in rows if row["seed"] == rows[-1]["seed"]]
    shown = ("images_seen", *PROBES, *SIGNALS)
    print("  ".join(f"{name:>18}" for name in shown))
    for row in newest:
        print("  ".join(f"{row[name]:>18.4g}" if name in row else f"{'':>18}" for name in shown))
    of = f"{newest[-1]['images_seen']:,.0f} of {newest[-1]['images']:,} images"
    title = ", ".join(["I-JEPATH", of, *newest[0]["keys"]])
    path.with_suffix(".png").write_bytes(draw_curves(newest, PANELS, title))
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
