"""OCT pretraining on one rank or several without Ray: spawn needs these importable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oct.assembly import build
from oct.config import CollapseConfig, RunConfig, ValidationConfig
from oct.recipe import OctRecipe
from oct.sections import MaskConfig, ModelConfig
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UserError
from pathray.nn.vit import PRESETS
from pathray.run import train
from pathray.train.loop import Tick
from pathray.train.recipe import Progress
from pathray.train.sync import FlatSync
from tests.builders.oct.volumes import PATCH, SmallReader, micro, small_budget, small_config

G = 4
NARROW = {"dim": 48, "depth": 2, "heads": 3}
MODEL = {"name": "vit_micro", "patch_size": PATCH, "pred_dim": 48, "pred_depth": 1}


def run_config(workers: int, **changes: Any) -> RunConfig:
    """Eight steps of four volumes, with stochastic depth, and a held-out loss every second step."""
    PRESETS["vit_micro"] = NARROW
    values = {
        "model": ModelConfig(**MODEL, drop_path=0.2),
        "mask": MaskConfig(kind="vjepa"),
        "validation": ValidationConfig(every={"iterations": 2}),
    }
    return small_config(workers=workers, **(values | changes))


class StopAfter:
    """Asks for a stop after a step; otherwise looks as `inner` does."""

    def __init__(self, inner: Any, run: str, step: int) -> None:
        self.inner, self.run, self.step = inner, run, step

    def observe(self, tick: Tick) -> dict[str, float]:
        if tick.step == self.step:
            (Path(self.run) / "STOP").touch()
        found: dict[str, float] = self.inner.observe(tick)
        return found


def trained(device: Device, plan_path: str, run: str, stop_after: int = 0, **changes: Any) -> dict[str, Any]:
    """How a run in the folder `run` ended, from whatever is there."""
    torch.set_num_threads(1)
    Path(run).mkdir(exist_ok=True)
    plan, config = Plan.open(plan_path), run_config(device.world_size, **changes)
    reader = SmallReader(config)
    parts = build(config, plan, device.world_size, reader, reader, "digest")
    if stop_after:
        parts.watch = StopAfter(parts.watch, run, stop_after)
    return asdict(train(parts, plan, run, device))


def stopped_and_resumed(device: Device, plan_path: str, folder: str, **changes: Any) -> list[str]:
    """An undisturbed run in `whole`, and another in `parts`, stopped after its third step and resumed: how they
    ended."""
    ends = [trained(device, plan_path, f"{folder}/whole", **changes)["end"]]
    ends.append(trained(device, plan_path, f"{folder}/parts", stop_after=3, **changes)["end"])
    ends.append(trained(device, plan_path, f"{folder}/parts", **changes)["end"])
    return ends


def collapsed(device: Device, plan_path: str, run: str) -> str:
    """What ends a run whose features are below a bound that nothing reaches, from the first log line on."""
    bounds = CollapseConfig(lines=3, min_std=1e9)
    try:
        return str(trained(device, plan_path, run, collapse=bounds)["end"])
    except UserError as error:
        return f"{type(error).__name__}: {error}"


def double_recipe(device: Device, **model: Any) -> OctRecipe:
    PRESETS["vit_micro"] = NARROW
    budget = small_budget(batch_size_per_gpu=G // device.world_size, global_batch=G)
    config = small_config(workers=device.world_size, model=ModelConfig(**MODEL, **model), optimization=budget)
    recipe = OctRecipe(config, device.gather_sum_grad)
    recipe.modules.double()
    return recipe


def gradients(device: Device) -> dict[str, tuple[Tensor, float]]:
    """The mean gradient and loss of one global batch as the loop would have them, in float64."""
    options = {kind: {"loss": kind} for kind in ("normalized_mse", "l1", "dense")} | {
        "vicreg": {"regulariser": "vicreg"}
    }
    return {name: _gradient(device, **model) for name, model in options.items()}


def _gradient(device: Device, **model: Any) -> tuple[Tensor, float]:
    recipe, share = double_recipe(device, **model), G // device.world_size
    batch = micro(recipe.config, range(device.rank * share, device.rank * share + share))
    prepared = recipe.prepare(batch, Progress(0, 8, G))
    prepared["image"] = prepared["image"].double()
    params = [p for _, p in recipe.params["model"]]
    sync = FlatSync(params, device)
    sync.begin()
    loss = recipe.loss("model", prepared, Progress(0, 8, G))
    loss.sum.backward(inputs=params)
    gradient, totals = sync.reduce(torch.stack([loss.sum.detach(), loss.weight.double()]))
    return gradient / totals[1], float(totals[0] / totals[1])


def everything(device: Device, plan_path: str, folder: str) -> dict[str, Any]:
    """All that is asked of several ranks, because starting processes is what takes the time."""
    return {
        "ends": stopped_and_resumed(device, plan_path, folder),
        "gradients": gradients(device),
        "collapsed": collapsed(device, plan_path, f"{folder}/collapsed"),
    }
