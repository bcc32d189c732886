"""Cost of the loop itself: a recipe that computes next to nothing, against a bare torch loop over it.

    python -m benchmarks.loop_overhead [steps]

Prints milliseconds per step (median of five rounds, the two sides in turn) and their ratio, with the log and poll
cadences on. On CUDA it also prints how often the host waited for the device outside of them, which should be never.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pathray.device import Device
from pathray.optim.schedules import constant
from pathray.train.loop import LoopSettings, PhaseOptim, run
from pathray.train.recipe import Loss, Micro, Progress

ROUNDS, LOG_STEPS, MICRO, WIDTH = 5, 10, 8, 64


class Nothing:
    """A layer of 64 weights, so that the loop's own time remains."""

    def __init__(self) -> None:
        layer = nn.Linear(WIDTH, 1)
        self.modules = nn.ModuleDict({"layer": layer})
        self.params = {"model": list(layer.named_parameters())}

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        return micro

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        error = self.modules["layer"](micro["x"]).square()
        return Loss(error.sum(), micro["weight"].sum(), {"error": error.detach().mean()})

    def after_step(self, progress: Progress) -> None:
        return None

    def signals(self) -> dict[str, float]:
        return {}


def batches(start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The same arrays again and again; only positions change."""
    x, weight = np.ones((MICRO, WIDTH), np.float32), np.ones(MICRO, np.float32)
    for first in range(start, stop, MICRO):
        yield {"position": np.arange(first, first + MICRO), "x": x, "weight": weight, "corrupt": 0}


def loop_ms(device: Device, settings: LoopSettings) -> float:
    """Milliseconds per step of `pathray.train.loop.run`."""
    began = time.perf_counter()
    for _ in run(Nothing(), lambda start: batches(start, settings.total_images), settings, device=device):
        continue
    device.synchronize()
    return 1e3 * (time.perf_counter() - began) / settings.total_steps


def bare_ms(device: Device, settings: LoopSettings) -> float:
    """Milliseconds per step of forward, backward and torch's own AdamW, and nothing else."""
    layer = nn.Linear(WIDTH, 1).to(device.torch_device)
    adam = torch.optim.AdamW(layer.parameters(), lr=1e-3, foreach=True)
    stream, per_step = batches(0, settings.total_images), settings.global_batch // MICRO
    began = time.perf_counter()
    for _ in range(settings.total_steps):
        adam.zero_grad()
        for _ in range(per_step):
            x = torch.from_numpy(next(stream)["x"]).to(device.torch_device)
            (layer(x).square().sum() / settings.global_batch).backward()
        adam.step()
    device.synchronize()
    return 1e3 * (time.perf_counter() - began) / settings.total_steps


def waits(device: Device, settings: LoopSettings) -> int:
    """How often the host waited for CUDA during steps without a cadence."""
    quiet = replace(
        settings, log_every=0, poll_every_steps=settings.total_steps, total_images=settings.global_batch * 40
    )
    ticks = run(Nothing(), lambda start: batches(start, quiet.total_images), quiet, device=device)
    for _ in range(5):
        next(ticks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(30):
            next(ticks)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def main(steps: int) -> None:
    device = Device.of("auto")
    print(device.describe())
    for micros in (1, 4):
        batch = MICRO * micros
        settings = LoopSettings(
            seed=0,
            global_batch=batch,
            micro_batch=MICRO,
            total_images=batch * steps,
            optim={"model": PhaseOptim(lr=constant(1e-3), clip=1.0)},
            log_every=LOG_STEPS * batch,
            poll_every_steps=LOG_STEPS,
        )
        loop_ms(device, replace(settings, total_images=batch * 20))
        rounds = [(loop_ms(device, settings), bare_ms(device, settings)) for _ in range(ROUNDS)]
        ours, bare = (float(np.median(column)) for column in zip(*rounds, strict=True))
        print(f"{micros} micro-batches a step: loop {ours:.2f} ms, bare torch {bare:.2f} ms, {ours / bare:.2f}x")
        if device.kind == "cuda":
            print(f"  waits for the device outside the cadences: {waits(device, settings)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
