"""Runs of the toy science without Ray, and what a run's folder says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run import Outcome, RunSettings, train
from tests.builders.runs.toy_science import ToyConfig, assemble
from tests.builders.runs.weights import newest_weights


def train_toy(run: Path, plan: Plan, settings: RunSettings | None = None, **changes: Any) -> Outcome:
    """The toy run in this process, on one rank."""
    run.mkdir(exist_ok=True)
    parts = assemble(ToyConfig(run=str(run), **changes), plan, 1)
    return train(parts, plan, str(run), Device.of("cpu"), settings=settings)


def weights(run: Path) -> tuple[int, str]:
    """Images seen by the newest checkpoint, and the digest of everything that training changes."""
    return newest_weights(run, "toy")


def seen(run: Path) -> list[dict[str, Any]]:
    """A line for every micro-batch that a rank took: step, rank, positions, rows."""
    return [json.loads(line) for file in sorted(run.glob("seen-*.jsonl")) for line in file.read_text().splitlines()]


def positions_by_step(run: Path) -> dict[int, set[int]]:
    steps: dict[int, set[int]] = {}
    for line in seen(run):
        steps.setdefault(line["step"], set()).update(line["position"])
    return steps


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
