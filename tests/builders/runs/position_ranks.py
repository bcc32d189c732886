"""What ranks of a gloo group log of the positions that they have trained on, for processes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pathray.device import Device
from pathray.train.loop import run
from pathray.train.recipe import TrainingStopped
from tests.builders.runs.recipes import Regression, settings, stream

LOG_EVERY, STEPS = 24, 6


def logged(device: Device) -> dict[str, Any]:
    """The digests of an undisturbed run, and how one ends whose ranks all believe to be rank 0."""
    return {"rows": rows(device), "bug": _end_with_rank_0_everywhere(device)}


def rows(device: Device) -> list[dict[str, str]]:
    config = settings(global_batch=12, micro_batch=2, total_images=12 * STEPS, log_every=LOG_EVERY)
    ticks = run(Regression(), stream(config, device.rank, device.world_size), config, device=device)
    return [tick.digests for tick in ticks if tick.metrics is not None]


def _end_with_rank_0_everywhere(device: Device) -> tuple[int, str]:
    """Each process takes the rows of rank 0: steps taken, and the error."""
    config, taken = settings(global_batch=12, micro_batch=2, total_images=12 * STEPS), 0
    try:
        for tick in run(Regression(), stream(config, 0, device.world_size), config, device=replace(device, rank=0)):
            taken = tick.step
    except TrainingStopped as e:
        return taken, str(e)
    return taken, "not noticed"
