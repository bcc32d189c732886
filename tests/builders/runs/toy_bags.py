"""A science of bags of different lengths in pre-formed batches, within a budget of instances: what MIL trains on.

Importable by name, because scenarios and train functions are sent to other processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pathray.data.groups import GroupedOrder, grouped_order
from pathray.data.order import rng
from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import stream_batches
from pathray.device import Device
from pathray.errors import UnreadableUnit
from pathray.store import checkpoint
from pathray.train.assembly import Assembly
from pathray.train.loop import run
from pathray.train.recipe import Loss
from pathray.train.state import TrainState
from tests.builders.runs.toy_science import ToyConfig, ToyRecipe
from tests.builders.runs.toy_science import assemble as assemble_rows
from tests.builders.runs.weights import state_hash

WIDTH, BAGS, BUDGET, EPOCHS = 8, 40, 24, 3


@dataclass
class BagConfig(ToyConfig):
    total_images: int = 12 * 6  # positions: groups
    unreadable_every: int = 7


def write_bags(path: Path) -> Plan:
    """Bags of 1 to 9 instances."""
    with PlanWriter(path, {"source": np.int32, "x": np.int32, "instances": np.int16}, pa.table({"path": ["s"]})) as out:
        out.append({"source": np.zeros(BAGS), "x": np.arange(1, BAGS + 1), "instances": 1 + np.arange(BAGS) * 5 % 9})
    return Plan.open(path)


def bag_order(plan: Plan, seed: int) -> GroupedOrder:
    """Groups of at most BUDGET instances, formed anew for each of EPOCHS epochs."""
    instances = plan.column("instances").astype(np.int32)
    counts, rows, passes = [], [], [0]
    for epoch in range(EPOCHS):
        held = BUDGET
        for row in rng(seed, "epoch", epoch).permutation(plan.rows):
            if held + instances[row] > BUDGET:
                counts.append(0)
                held = 0
            counts[-1] += 1
            held += instances[row]
            rows.append(row)
        passes.append(len(counts))
    members = np.array(rows, np.int32)
    return grouped_order(np.append(0, np.cumsum(counts)), members, seed, passes=passes, sizes=instances[members])


class BagReader:
    """Reads a bag `[instances, WIDTH]`; leaves the bags of a group as a list, with their labels in an array."""

    benign_reasons = frozenset({"tissue"})

    def __init__(self, config: BagConfig) -> None:
        self.seed, self.unreadable_every = config.seed, config.unreadable_every

    def read(self, unit, position, attempt):
        if self.unreadable_every and int(unit["x"]) % self.unreadable_every == 0:
            raise UnreadableUnit("truncated", f"row{int(unit['row'])}", "too short")
        bag = rng(self.seed, "bag", position, attempt, int(unit["slot"])).standard_normal((unit["instances"], WIDTH))
        return {"x": (bag + 0.01 * int(unit["x"])).astype(np.float32), "row": np.int64(unit["row"])}

    def collate(self, units):
        return {"x": [unit["x"] for unit in units], "row": np.array([unit["row"] for unit in units])}


class BagRecipe(ToyRecipe):
    """Attention pooling; the loss is a sum over bags, its weight their number, whatever group they are in."""

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        torch.manual_seed(config.seed)
        net = nn.ModuleDict({"score": nn.Linear(WIDTH, 1, bias=False), "value": nn.Linear(WIDTH, 1)})
        self.modules = nn.ModuleDict({"net": net})
        self.params = {"model": list(net.named_parameters())}

    def loss(self, phase, micro, progress):
        net = self.modules["net"]
        errors = []
        for bag in (bag for group in micro["x"] for bag in group):
            attention = torch.softmax(net["score"](bag), dim=0)
            errors.append(((attention * net["value"](bag)).sum() - bag.mean()) ** 2)
        each = torch.stack(errors)
        return Loss(each.sum(), torch.tensor(float(len(errors))), {"toy": each.detach().mean()})


def assemble(config: BagConfig, plan: Plan, world: int) -> Assembly:
    parts = assemble_rows(config, plan, world)
    settings = replace(parts.settings, judge_recent=10**6)
    return replace(
        parts,
        recipe=BagRecipe(config),
        order=bag_order(plan, config.seed),
        reader=BagReader(config),
        settings=settings,
        encoder=None,
    )


def expected_rows(order: GroupedOrder, plan: Plan, config: BagConfig, position: int) -> list[int]:
    """The rows that a group is to have once the unreadable ones are replaced, each slot by itself."""
    rows, x = order.members([position])[0].tolist(), plan.column("x")
    for slot, row in enumerate(rows):
        attempt = 0
        while config.unreadable_every and x[row] % config.unreadable_every == 0:
            attempt += 1
            row = order.replacement(position, attempt, slot)
        rows[slot] = row
    return rows


def train_bags(device: Device, folder: str, plan_path: str, stops: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """Train, stopping at the given steps and each time resuming with everything built anew; what was seen and where it
    ended. `folder` is this rank's record of what it has seen; checkpoints are in `checkpoints` next to it."""
    plan = Plan.open(plan_path)
    Path(folder, str(device.rank)).mkdir(parents=True, exist_ok=True)
    config = BagConfig(run=str(Path(folder, str(device.rank))), **changes)
    saved = str(Path(folder, "checkpoints"))
    for stop_at in (*stops, None):
        parts = assemble(config, plan, device.world_size)
        state = TrainState(parts.recipe, parts.settings, device)
        newest = device.broadcast_object(checkpoint.latest(saved, "toy"))
        if newest is not None:
            state.load(*checkpoint.load(newest.path))
        lookup, settings, faults = Lookup(plan, parts.order), parts.settings, []

        def batches(start: int, lookup=lookup, settings=settings, parts=parts, faults=faults):
            share = (settings.global_batch, device.rank, device.world_size, settings.micro_batch)
            rows = rank_rows(lookup, start, settings.total_images, *share, chunk=50)
            for batch in stream_batches(rows, parts.reader, lookup, parts.decode):
                faults += batch.pop("faults")
                yield batch

        wish = (lambda: state.step + 1 >= stop_at) if stop_at is not None else None  # noqa: B023
        for tick in run(parts.recipe, batches, settings, device=device, state=state, stop=wish):
            if tick.end == "stopped" and device.rank == 0:
                checkpoint.save(saved, "toy-latest", state.tensors(), state.meta())
        device.gather_objects(None)  # a barrier: others must not look before it is there
    report = state.health.read()
    weights = {name: p.detach().clone() for name, p in parts.recipe.params["model"]}
    return {
        "hash": state_hash(state.tensors()), "weights": weights, "end": tick.end, "units": report.units,
        "corrupt": report.corrupt, "seen": seen(Path(config.run)), "loss": tick.metrics["loss"],
    }  # fmt: skip


def seen(run_dir: Path) -> list[tuple[int, int, list[int]]]:
    """(step, position, rows of its group) in the order in which they were seen."""
    lines = [json.loads(line) for file in run_dir.glob("seen-*.jsonl") for line in file.read_text().splitlines()]
    return [(line["step"], p, rows) for line in lines for p, rows in zip(line["position"], line["row"], strict=True)]


def several_bags(device: Device, folder: str, plan_path: str) -> dict[str, Any]:
    """Runs of one group of ranks: undisturbed, and stopped twice."""
    return {
        name: train_bags(device, f"{folder}/{name}", plan_path, stops)
        for name, stops in (("whole", ()), ("resumed", (2, 5)))
    }
