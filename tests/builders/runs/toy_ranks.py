"""Whole runs of the toy sciences on several ranks without Ray: spawn needs this importable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UserError
from pathray.run import train
from tests.builders.runs.toy_science import ToyConfig


def train_in_turn(
    device: Device, assemble: Callable[..., Any], plan_path: str, configs: Sequence[ToyConfig]
) -> list[dict[str, Any] | str]:
    """One rank's part in runs of one group, because starting processes is what takes the time: how each ended, or what
    the user was told."""
    plan, ends = Plan.open(plan_path), list[dict[str, Any] | str]()
    for config in configs:
        Path(config.run).mkdir(exist_ok=True)
        try:
            parts = assemble(config, plan, device.world_size)
            ends.append(asdict(train(parts, plan, config.run, device)))
        except UserError as error:
            ends.append(str(error))
    return ends
