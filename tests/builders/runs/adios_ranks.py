"""ADIOS in several gloo processes: spawn needs these importable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adios.config import StudentConfig
from adios.recipe import AdiosRecipe
from adios.settings import loop_settings
from pathray.device import Device
from pathray.train.loop import run
from pathray.train.recipe import Progress
from pathray.train.state import TrainState
from pathray.train.sync import FlatSync
from tests.builders.runs.adios_run import batch, config, stream

G = 6
PHASES = ("student", "mask")


def double_run() -> Any:
    """Nothing is dropped, so that another number of ranks is the same mathematics; nothing of it is in float32."""
    student = StudentConfig(head=[16, 8], drop_path=0.0, positions="sincos")
    return config(global_batch=G, num_masks=2, crops_per_mask=2, student=student)


def double_recipe(gather: Any = None, rank: int = 0) -> AdiosRecipe:
    recipe = AdiosRecipe(double_run(), *(() if gather is None else (gather, rank)))
    recipe.modules.double()
    return recipe


def prepared(recipe: AdiosRecipe, first: int, count: int) -> dict[str, Tensor]:
    arrays = {k: torch.from_numpy(v) for k, v in batch(recipe.config, first, count).items() if k != "corrupt"}
    micro = recipe.prepare(arrays, Progress(0, 10, G))
    return {name: value.double() for name, value in micro.items()}


def gradients(device: Device) -> dict[str, Any]:
    """Of both phases, the mean gradient of one global batch as the loop would have it, and its loss, in float64."""
    recipe = double_recipe(device.gather_sum_grad, device.rank)
    share = G // device.world_size
    micro, out = prepared(recipe, device.rank * share, share), {}
    for phase in PHASES:
        params = [p for _, p in recipe.params[phase]]
        sync = FlatSync(params, device)
        sync.begin()
        loss = recipe.loss(phase, micro, Progress(0, 10, G))
        loss.sum.backward(inputs=params)
        gradient, totals = sync.reduce(torch.stack([loss.sum.detach(), loss.weight.double()]))
        out[phase] = ((gradient / totals[1]).numpy(), float(totals[0] / totals[1]))
    return out


def trained(device: Device, grad_sync: str) -> dict[str, Any]:
    """Weights after a short run through the loop, and the loss of its last step."""
    values = {"global_batch": G, "total_iterations": 4, "student": StudentConfig(head=[16, 8], drop_path=0.0)}
    made = config(**values)
    made.optimization.grad_sync = grad_sync
    recipe = AdiosRecipe(made, device.gather_sum_grad, device.rank)
    settings = loop_settings(made, device.world_size)
    state = TrainState(recipe, settings, device)
    for tick in run(recipe, stream(made, device.rank, device.world_size), settings, device=device, state=state):
        last = tick
    weights = np.concatenate([p.detach().numpy().ravel() for p in recipe.modules.parameters()])
    assert last.metrics is not None
    return {"weights": weights, "loss": last.metrics["loss"], "loss/mask": last.metrics["loss/mask"]}


def several(device: Device) -> dict[str, Any]:
    """All of it in one group, because starting processes is what takes the time."""
    return {
        "gradients": gradients(device),
        "flat": trained(device, "flat"),
        "overlap": trained(device, "overlap"),
    }
