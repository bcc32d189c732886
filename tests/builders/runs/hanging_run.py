"""A toy run whose steps may hang, for processes of their own."""

from __future__ import annotations

import ctypes
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run import train
from pathray.train.assembly import Assembly
from tests.builders.runs.toy_science import ToyConfig, ToyRecipe
from tests.builders.runs.toy_science import assemble as assemble_toy

HANGING_STEP, LIMIT_S = 5, 1.5  # the fifth; the first three may take longer


class HangingRecipe(ToyRecipe):
    """Hangs in its fifth step, once per run's folder and mark; with the interpreter lock held where `locked`."""

    def __init__(self, config: ToyConfig, mark: str, locked: bool = False) -> None:
        super().__init__(config)
        self.mark, self.locked = Path(config.run) / mark, locked

    def loss(self, phase: str, micro: Any, progress: Any) -> Any:
        if progress.step + 1 == HANGING_STEP and not self.mark.exists():
            self.mark.touch()
            hang_forever(self.locked)
        return super().loss(phase, micro, progress)


def hang_forever(locked: bool) -> None:
    if locked:
        ctypes.PyDLL(None).sleep(600)
    time.sleep(600)


def assemble(config: ToyConfig, plan: Plan, world: int, locked: bool = False) -> Assembly:
    parts = assemble_toy(config, plan, world)
    settings = replace(parts.settings, step_timeout_s=LIMIT_S)
    return replace(parts, recipe=HangingRecipe(config, "hung", locked), settings=settings)


def train_hanging(run: str, plan_path: str, locked: bool = False) -> None:
    """Train, with what is logged in the file `said`."""
    logging.basicConfig(filename=f"{run}/said")
    if locked:
        from pathray.train import step_watch

        step_watch.GRACE_S = 0.5
    plan = Plan.open(plan_path)
    train(assemble(ToyConfig(run=run, save_every=24), plan, 1, locked), plan, run, Device.of("cpu"))
