"""Digests of what each device of the mesh has trained on, as its rows were really placed, without a graph more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pathray import device as devices
from pathray.device import Device
from pathray.train.loop import Tick, TrainState, run
from pathray.train.positions import digest
from pathray.train.recipe import TrainingStopped
from tests.xla import tiny

DEVICES, EVERY = 4, 2 * tiny.G


def train(device: Device, state: TrainState | None = None, steps: int | None = None) -> tuple[list[Tick], list[int]]:
    """The ticks of a run that is logged after every second step, and the graphs compiled up to each."""
    settings = tiny.settings(total_images=12 * tiny.G, log_every=EVERY)
    state = state or TrainState(tiny.Tiny(), settings, device)
    ticks, compilations = [], []
    for tick in run(state.recipe, tiny.stream(settings), settings, device=device, state=state):
        ticks.append(tick)
        compilations.append(device.compile_count())
        if tick.step == steps:
            break
    return ticks, compilations


def of_device(first: int, last: int, number: int) -> str:
    """The digest of device `number`'s rows of the steps between two positions."""
    own = [p for p in range(first, last) if p % tiny.G // (tiny.G // DEVICES) == number]
    return f"{digest(own):016x}"


def rows(ticks: list[Tick]) -> list[dict[str, str]]:
    return [tick.digests for tick in ticks if tick.metrics is not None]


def test_each_line_has_the_rows_of_each_device_and_nothing_more_is_compiled(xla: Device) -> None:
    ticks, compilations = train(xla)
    assert rows(ticks) == [
        {
            "positions": f"{a}:{a + EVERY}",
            **{f"positions/{i}": of_device(a, a + EVERY, i) for i in range(DEVICES)},
        }
        for a in range(0, 12 * tiny.G, EVERY)
    ]
    assert compilations[2] > 0 and len(set(compilations[2:])) == 1, compilations


def test_the_lines_of_a_resumed_run_have_the_same_digests(xla: Device) -> None:
    whole, _ = train(xla)
    half, _ = train(xla, steps=6)
    rest, _ = train(xla, half[-1].state)
    assert rows(half) + rows(rest) == rows(whole)


def test_the_first_devices_rows_on_every_device_end_the_run_after_a_step(
    xla: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = devices._shard_xla

    def rows_of_the_first(tensor: torch.Tensor, mesh: Any, device: torch.device) -> torch.Tensor:
        return plain(tensor[: len(tensor) // DEVICES].repeat(DEVICES, *[1] * (tensor.ndim - 1)), mesh, device)

    monkeypatch.setattr(devices, "_shard_xla", rows_of_the_first)
    with pytest.raises(TrainingStopped, match="devices 0 and 1 have trained on the same rows of positions 0 to 8"):
        train(xla)


def test_the_whole_batch_on_every_device_ends_the_run_too(xla: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_shard_xla", lambda tensor, mesh, device: tensor.to(device))
    with pytest.raises(TrainingStopped, match="devices 0 and 1 have trained on the same rows"):
        train(xla)
