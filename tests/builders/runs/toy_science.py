"""A science of a few numbers, to train through Ray what does not need pixels: exactness, kills, stops, other W.

Importable by name, because train functions and configs are pickled to workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pathray.config.load import fingerprint, placement
from pathray.data.order import rng, uniform_order
from pathray.data.plan import Plan, PlanWriter
from pathray.data.stream import DecodeSettings
from pathray.errors import UnreadableUnit
from pathray.optim.schedules import Schedule
from pathray.train.assembly import Assembly
from pathray.train.recipe import Loss
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.supervised import Selection

WIDTH = 16


@dataclass
class ToyConfig:
    run: str = placement("")
    seed: int = 0
    global_batch: int = 12
    total_images: int = 12 * 8
    micro_batch: int = placement(2)
    save_every: int = placement(24)
    poll_every_steps: int = placement(1)
    unreadable_every: int = 0  # every n-th row cannot be read
    max_corrupt_fraction: float = 0.5
    kills: list[int] = placement(default_factory=list)  # steps at which rank 0 kills itself, at each once
    stop_at_step: int = placement(-1)  # rank 0 asks for a stop there
    bad_at_step: int = placement(-1)  # the loss is NaN from there on
    crash_rows: list[int] = placement(default_factory=list)  # reading them ends the process
    refused_rows: list[int] = placement(default_factory=list)  # or is refused as if it had
    decode_on: str = placement("worker")
    slow_s: float = placement(0.0)  # per micro-batch
    validate_every: int = placement(0)  # images
    patience: int | None = placement(None)
    best_at: int = placement(0)  # the images at which validation is best
    memory_for: int = placement(-1)  # units of a micro-batch that memory is enough for; -1: for any
    memory_from_step: int = placement(0)  # and from when on it is short
    memory_rank: int = placement(0)  # of which rank


class ToyReader:
    benign_reasons = frozenset({"tissue"})

    def __init__(self, config: ToyConfig) -> None:
        self.seed, self.unreadable_every = config.seed, config.unreadable_every
        self.crash_rows, self.refused_rows = config.crash_rows, config.refused_rows

    def read(self, unit, position, attempt):
        if int(unit["row"]) in self.crash_rows:
            ctypes.string_at(0)
        if int(unit["row"]) in self.refused_rows:
            raise UnreadableUnit("crashed_decoder", f"row{int(unit['row'])}", "as known")
        if self.unreadable_every and int(unit["x"]) % self.unreadable_every == 0:
            raise UnreadableUnit("truncated", f"row{int(unit['row'])}", "too short")
        noise = rng(self.seed, "noise", position, attempt).standard_normal(WIDTH)
        return {"x": (noise + 0.01 * int(unit["x"])).astype(np.float32), "row": np.int64(unit["row"])}

    def collate(self, units):
        return {name: np.stack([u[name] for u in units]) for name in units[0]}


class ToyRecipe:
    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3), nn.GELU(), nn.Linear(WIDTH, 1))
        self.modules = nn.ModuleDict({"net": net})
        self.params = {"model": list(net.named_parameters())}

    def phases(self, step):
        return ("model",)

    def prepare(self, micro, progress):
        config, rank = self.config, int(os.environ.get("RANK", torch.distributed.get_rank() if _distributed() else 0))
        lines = {
            "step": progress.step,
            "rank": rank,
            "position": micro["position"].tolist(),
            "row": [row.tolist() for row in micro["row"]],
        }
        with (Path(config.run) / f"seen-{os.getpid()}.jsonl").open("a") as f:
            f.write(json.dumps(lines) + "\n")
        time.sleep(config.slow_s)
        killed = Path(config.run) / f"killed_{progress.step}"
        if rank == 0 and progress.step in config.kills and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and progress.step == config.stop_at_step:
            (Path(config.run) / "STOP").touch()
        short = 0 <= config.memory_for < len(micro["position"]) and progress.step >= config.memory_from_step
        if short and rank == config.memory_rank:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return micro

    def loss(self, phase, micro, progress):
        out = self.modules["net"](micro["x"])
        each = (out[:, 0] - micro["x"].mean(dim=1)) ** 2
        if 0 <= self.config.bad_at_step <= progress.step:
            each = each * float("nan")
        return Loss(each.sum(), torch.tensor(float(each.shape[0])), {"toy": each.detach().mean()})

    def after_step(self, progress):
        return None

    def signals(self):
        return {"toy_signal": 1.0}


def assemble(config: ToyConfig, plan: Plan, world: int) -> Assembly:
    settings = LoopSettings(
        seed=config.seed,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        total_images=config.total_images,
        optim={"model": PhaseOptim(lr=Schedule("cosine", 1e-2, 1e-3))},
        log_every=config.global_batch,
        save_every=config.save_every,
        poll_every_steps=config.poll_every_steps,
        max_bad_steps=3,
        max_corrupt_fraction=config.max_corrupt_fraction,
        judge_corrupt_from=24,
    )
    return Assembly(
        science="toy",
        tag="toy",
        recipe=ToyRecipe(config),
        settings=settings,
        order=uniform_order(plan.rows, config.seed),
        reader=ToyReader(config),
        identity=fingerprint({**fingerprint(config)["values"], "plan": plan.hash}),
        placement=fingerprint(config, placement=True),
        export=export,
        decode_on=config.decode_on,
        decode=DecodeSettings(threads=2, ahead=2),
        selection=Selection("score", "max", config.validate_every, config.patience) if config.validate_every else None,
        validate=lambda state: {"score": -abs(state.images_seen - config.best_at)},
    )


def export(recipe, folder, facts) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "facts.json").write_text(json.dumps(facts))


def write_plan(path: Path, rows: int = 200) -> Plan:
    with PlanWriter(path, {"source": np.int32, "x": np.int32}, pa.table({"path": ["none"]})) as writer:
        writer.append({"source": np.zeros(rows), "x": np.arange(1, rows + 1)})
    return Plan.open(path)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
