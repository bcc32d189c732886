"""Does OCT pretraining learn? Which retinal layer a token holds, by a linear probe, over the volumes seen.

    python benchmarks/learning_oct.py                             # three seeds, ten minutes of a core each
    python benchmarks/learning_oct.py seeds=1 every=512 optimization.total_images=2048 model.regulariser=sigreg
    python benchmarks/learning_oct.py plot=learning_oct.jsonl     # a table over seeds, and curve.png, of rows there are

Pretrains on generated retinas (tests/builders/oct/varied_retina.py), whose layers are known for every voxel. A token's
label is the layer that most of its voxels belong to, one of eight. Every `every` volumes a logistic regression is
fitted to teacher tokens of `train` volumes and judged on `test` others; its strength is chosen on a part of the
former. A volume's score is the mean recall over its layers. Next to it: the same network as initialised, and a patch's
grey values; all of them also with sine positions appended, since rotary positions are not in the tokens. Differences
are paired by volume: 95% t intervals over volumes, and over seeds. Any other key is one of a run config.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from omegaconf import OmegaConf

from oct.augment import Volumes, count_draws
from oct.config import CONFIGS_DIR, RunConfig, resolve
from oct.masks import MaskSampler
from oct.recipe import OctRecipe
from oct.settings import loop_settings
from pathray.config.load import load_config
from pathray.data.order import rng
from pathray.device import Device
from pathray.draw.charts import Panel, draw_curves
from pathray.evaluation.metrics.probe import linear_probe
from pathray.nn.positions import sincos_table
from pathray.nn.vit import PatchEmbed
from pathray.stats.bootstrap import Interval, paired_difference
from pathray.train.loop import run
from pathray.train.state import TrainState
from tests.builders.oct.varied_retina import token_layers, varied_retina

DEFAULTS = (
    *("data.image_size=[16,96,96]", "data.spacing_mm=[0.2,0.02,0.06]", "model.patch_size=[4,8,8]"),
    *("model.name=vit_micro", "model.positions=rope", "model.pred_dim=96", "model.pred_depth=2"),
    *("optimization.global_batch=8", "optimization.batch_size_per_gpu=8", "optimization.total_images=4096"),
    *("optimization.lr=5e-4", "optimization.warmup=128", "optimization.ema=[0.98,1.0]"),
    *("collapse.stop=false", "logging.log_every=64"),
)
PAIRS = tuple((name, more) for more in ("", "+position") for name in ("random", "grey"))
POSITION_DIM = 48
HELD_OUT = 1 << 20  # numbers of the probes' retinas begin here
LOGGED = ("loss_jepa", "explained", "target_std", "target_rankme", "prediction_rankme", "student_rankme")
CURVES = (
    Panel("Tokens", (("pretrained", "pretrained"), ("random", "random weights")), "mean recall", smooth=False),
    Panel(
        "With positions",
        (
            ("pretrained+position", "pretrained"),
            ("random+position", "random weights"),
            ("grey+position", "grey values"),
        ),
        "mean recall",
        smooth=False,
    ),
    Panel("Explained by the prediction", (("explained", "targets' variance"),), "share", low=-1.0),
    Panel("RankMe", (("target_rankme", "targets"), ("prediction_rankme", "predictions")), from_zero=True),
)  # fmt: skip


@dataclass
class Settings:
    """Settings of the benchmark; every other key is one of a run config."""

    seeds: int = 3
    first_seed: int = 0
    every: int = 1024  # volumes between two probes
    volumes: int = 100_000  # distinct ones to train on
    train: int = 16  # volumes of the probe, and tokens of each
    tokens: int = 64
    test: int = 32
    rows: str = "outputs/learning_oct.jsonl"  # appended to
    plot: str = ""


@dataclass
class Probe:
    """The probe's volumes: normalised `images` `[V, 1, D, H, W]`, layers `[V, N]`, and the chosen tokens `[V, T]`."""

    images: torch.Tensor
    layers: np.ndarray
    chosen: np.ndarray
    train: int

    @classmethod
    def of(cls, config: RunConfig, settings: Settings) -> Probe:
        size, patch = tuple(config.data.image_size), tuple(config.model.patch_size)
        made = [varied_retina(HELD_OUT + n, size) for n in range(settings.train + settings.test)]
        layers = np.stack([token_layers(layer, patch) for _, layer in made])
        inside = torch.tensor([[[0, n] for n in size]] * len(made), dtype=torch.int32)
        images = Volumes(config.augment, config.data.spacing_mm)(
            torch.from_numpy(np.stack([i for i, _ in made])), inside
        )
        chosen = np.stack(
            [rng(0, "tokens", n).permutation(layers.shape[1])[: settings.tokens] for n in range(len(made))]
        )
        return cls(images, layers, chosen, settings.train)

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """`[test]`: each test volume's mean recall over its layers, by a probe of tokens `[V, N, D]`."""
        rows = np.arange(self.train)[:, None]
        x, y = tokens[rows, self.chosen[: self.train]], self.layers[rows, self.chosen[: self.train]]
        groups = np.repeat(np.arange(self.train), x.shape[1])
        test_x, test_y = tokens[self.train :], self.layers[self.train :]
        found = linear_probe(
            x.reshape(-1, x.shape[-1]), y.ravel(), test_x.reshape(-1, x.shape[-1]), test_y.ravel(),
            train_groups=groups, cs=(1e-3, 1e-2, 1e-1, 1.0), max_iter=200,
        )  # fmt: skip
        right = found.predictions.reshape(test_y.shape) == test_y
        return np.array([np.mean([r[t == k].mean() for k in np.unique(t)]) for r, t in zip(right, test_y, strict=True)])

    @torch.inference_mode()
    def encode(self, encoder: torch.nn.Module) -> np.ndarray:
        training = encoder.training
        encoder.eval()
        tokens = torch.cat([encoder(x) for x in self.images.split(8)])
        encoder.train(training)
        return tokens.numpy()

    def grey(self, config: RunConfig) -> np.ndarray:
        """Grey values of every patch `[V, N, P]`."""
        return PatchEmbed(tuple(config.model.patch_size), 1, 1).patches(self.images).numpy()

    def both(self, name: str, tokens: np.ndarray, config: RunConfig) -> dict[str, np.ndarray]:
        """Scores of tokens, and of tokens with sine positions, whose scale is that of the tokens' dimensions."""
        table = sincos_table(config.tokens, POSITION_DIM).numpy()
        placed = np.concatenate([tokens, np.broadcast_to(table, (*tokens.shape[:2], POSITION_DIM))], axis=2)
        return {name: self.scores(tokens), f"{name}+position": self.scores(placed)}


def batches(config: RunConfig, volumes: int, start: int) -> Iterator[dict[str, Any]]:
    """Batches of generated retinas as the reader gives volumes, from a position on."""
    size, seed, batch = tuple(config.data.image_size), config.data.seed, int(config.optimization.micro_batch or 1)
    masks, box = MaskSampler.of(config), np.array([[0, n] for n in size], np.int32)
    for first in range(start, int(config.optimization.total_images or 0), batch):
        units = [
            {
                "image": varied_retina(int(rng(seed, "order", position).integers(volumes)), size)[0],
                "inside": box,
                "draws": rng(seed, "augment", position).random(count_draws(config), np.float32),
                **masks.sample(rng(seed, "masks", position)),
            }
            for position in range(first, first + batch)
        ]
        stacked = {name: np.stack([unit[name] for unit in units]) for name in units[0]}
        yield {**stacked, "position": np.arange(first, first + batch)}


def one_seed(seed: int, keys: Sequence[str], settings: Settings) -> None:
    """Train with a seed; print and write a row per probe."""
    argv = (*DEFAULTS, *keys, f"data.seed={seed}")
    config = resolve(load_config(RunConfig, argv, configs_dir=CONFIGS_DIR).config, 1, settings.volumes)
    probe, recipe, device = Probe.of(config, settings), OctRecipe(config), Device.of("cpu")
    of = probe.both("grey", probe.grey(config), config)
    of |= probe.both("random", probe.encode(recipe.encoder), config)
    print(f"seed {seed}  " + "  ".join(f"{name} {values.mean():.3f}" for name, values in of.items()), flush=True)
    loop, last, began, spent = loop_settings(config, 1), {}, time.process_time(), 0.0
    state = TrainState(recipe, loop, device)
    for tick in run(recipe, lambda start: batches(config, settings.volumes, start), loop, device=device, state=state):
        last = tick.metrics or last
        if tick.images_seen % settings.every and tick.end is None:
            continue
        at = time.process_time()
        of |= probe.both("pretrained", probe.encode(recipe.encoder), config)
        tell(seed, tick.images_seen, at - began - spent, of, last, keys, settings)
        spent += time.process_time() - at


def tell(
    seed: int, seen: int, seconds: float, of: dict[str, np.ndarray], logged: dict[str, float], keys: Sequence[str],
    settings: Settings,
) -> None:  # fmt: skip
    against = {f"{name}{more}": paired_difference(of[f"pretrained{more}"], of[f"{name}{more}"]) for name, more in PAIRS}
    figures = {name: logged[name] for name in LOGGED if name in logged}
    row = {"seed": seed, "images_seen": seen, "cpu_s": round(seconds), **figures}
    row |= {name: float(values.mean()) for name, values in of.items()}
    own = f"probe {row['pretrained']:.3f} {row['pretrained+position']:.3f}"
    print(
        f"seed {seed} {seen:>6,} volumes {seconds:4.0f} s  {own}  "
        + "  ".join(f"- {name} {span(d)}" for name, d in against.items()),
        " ".join(f"{k} {v:.3g}" for k, v in figures.items()), flush=True,
    )  # fmt: skip
    Path(settings.rows).parent.mkdir(parents=True, exist_ok=True)
    row |= {f"minus_{name}": [d.estimate, d.low, d.high] for name, d in against.items()}
    with open(settings.rows, "a") as file:
        file.write(json.dumps(row | {"keys": list(keys)}) + "\n")


def span(d: Interval) -> str:
    return f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def over_seeds(rows: Sequence[dict[str, Any]]) -> None:
    """Print the differences over the seeds, after every number of volumes that two seeds or more have reached."""
    for seen in sorted({row["images_seen"] for row in rows}):
        newest = {row["seed"]: row for row in rows if row["images_seen"] == seen}
        for name, more in PAIRS if len(newest) > 1 else ():
            other, own = f"{name}{more}", f"pretrained{more}"
            a, b = ([row[which] for row in newest.values()] for which in (own, other))
            figures = f"{own} {np.mean(a):.3f} - {other} {np.mean(b):.3f} = {span(paired_difference(a, b))}"
            print(f"{seen:,} volumes, {len(newest)} seeds: {figures}")


def main() -> None:
    own = {f.name for f in fields(Settings)}
    mine = [a for a in sys.argv[1:] if a.partition("=")[0] in own]
    keys = [a for a in sys.argv[1:] if a not in mine]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(mine)))
    if settings.plot:
        rows = [json.loads(line) for line in Path(settings.plot).read_text().splitlines()]
        over_seeds(rows)
        Path("curve.png").write_bytes(draw_curves(rows, CURVES, "OCT pretraining on generated retinas"))
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(json.dumps({"settings": asdict(settings), "keys": keys}))
    for n in range(settings.seeds):
        one_seed(settings.first_seed + n, keys, settings)
    over_seeds([json.loads(line) for line in Path(settings.rows).read_text().splitlines()])


if __name__ == "__main__":
    main()
