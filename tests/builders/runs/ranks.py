"""Runs a scenario in several gloo processes, and holds the scenarios, which those processes import by name."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from pathray.config.sections import RegulariserConfig
from pathray.device import Device
from pathray.store import checkpoint
from pathray.train.loop import run
from pathray.train.recipe import TrainingStopped
from pathray.train.regulariser import Regulariser
from pathray.train.settings import LoopSettings
from pathray.train.state import TrainState
from pathray.train.sync import FlatSync, OverlapSync
from tests.builders.runs.recipes import Regression, TwoPhases, settings, stream
from tests.builders.runs.weights import state_hash

PHASES = ("student", "adversary")


def run_ranks(world: int, scenario: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """The results of `scenario(device, *args)` on every rank of a gloo group, in rank order."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [new_process(_rank, r, world, scenario, str(folder), args) for r in range(world)]
    try:
        for p in processes:
            p.start()
        for p in processes:
            p.join(240)
    finally:
        for p in processes:
            if p.is_alive():
                p.kill()
    results = []
    for r, p in enumerate(processes):
        path = folder / f"result-{r}"
        assert path.exists(), f"rank {r} gave no result (exit code {p.exitcode})"
        ok, value = pickle.loads(path.read_bytes())
        assert ok, f"rank {r}: {value}"
        results.append(value)
    return results


def new_process(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process for `function`, not yet started: a fork of one that has imported torch once for the processes of all
    tests, with the environment variables of this one and nothing else of it."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pyarrow"])
    return context.Process(target=_with_environment, args=(dict(os.environ), function, args))


def _with_environment(environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def exit_code(function: Callable[..., Any], *args: Any) -> int | None:
    """How a process of its own that called `function` ended: 0, or minus the signal."""
    process = new_process(function, *args)
    process.start()
    try:
        process.join(120)
        assert process.exitcode is not None, "the process hangs"
    finally:
        process.kill()
    return process.exitcode


def _rank(rank: int, world: int, scenario: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        result = (True, scenario(Device.of("cpu"), *args))
    except BaseException:
        result = (False, traceback.format_exc())
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def two_phase_settings(**changes: Any) -> LoopSettings:
    values = {"global_batch": 12, "micro_batch": 2, "total_images": 120, "phases": PHASES}
    return settings(**(values | changes))


def train(device: Device, folder: str, stops: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """Train the two-phase recipe, stopping at the given steps and each time resuming, with everything built anew, from
    the committed checkpoint."""
    config, seen = two_phase_settings(**changes), []
    for stop_at in (*stops, None):
        recipe = TwoPhases()
        state = TrainState(recipe, config, device)
        newest = device.broadcast_object(checkpoint.latest(folder, "toy"))
        if newest is not None:
            state.load(*checkpoint.load(newest.path))
        elif stop_at != (*stops, None)[0]:
            raise AssertionError("no checkpoint to resume from")
        batches = _recorded(stream(config, device.rank, device.world_size), seen)
        for tick in run(recipe, batches, config, device=device, state=state, stop=_stop_at(state, stop_at)):
            if tick.end == "stopped":
                assert tick.step == stop_at, (tick.step, stop_at)
                if device.rank == 0:
                    checkpoint.save(folder, "toy-latest", state.tensors(), state.meta())
                device.gather_objects(None)  # a barrier: others must not look before it is there
    return {"hash": state_hash(state.tensors()), "positions": seen, "metrics": tick.metrics, "end": tick.end}


def _stop_at(state: TrainState, step: int | None) -> Callable[[], bool]:
    return lambda: step is not None and state.step + 1 >= step


def _recorded(batches: Any, seen: list[tuple[int, list[int]]]) -> Any:
    def wrapped(start: int) -> Any:
        for batch in batches(start):
            seen.append((start, [int(p) for p in batch["position"]]))
            yield batch

    return wrapped


def faults(device: Device) -> dict[str, Any]:
    """What one rank meets must reach all: NaN, a request to stop, unreadable units."""
    return {
        "nan": _with_poison(device),
        "stop": _stopped(device),
        "corrupt": _corrupt(device),
        "statistics": _batch_norm_statistics(device),
    }


def _with_poison(device: Device) -> dict[str, Any]:
    config = settings(micro_batch=1, log_every=0, max_bad_steps=3)
    recipe = Regression(poison=lambda p: p == 6 * 4 + 5)  # the last rank's unit in step 4
    ticks = list(run(recipe, stream(config, device.rank, device.world_size), config, device=device))
    state = ticks[-1].state
    rows = [(t.step, t.metrics) for t in ticks if t.metrics is not None]
    return {"hash": state_hash(state.tensors()), "rows": rows, "steps": int(state.optimizers["model"].steps)}


def _stopped(device: Device) -> int:
    config = settings(micro_batch=1, poll_every_steps=3)
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] >= 2

    ticks = list(run(Regression(), stream(config, device.rank, device.world_size), config, device=device, stop=stop))
    assert ticks[-1].end == "stopped" and (device.rank == 0) == (asked[0] > 0)
    return ticks[-1].step


def _corrupt(device: Device) -> str:
    config = settings(micro_batch=1, max_corrupt_fraction=0.1, judge_corrupt_from=18)
    last = device.world_size - 1
    batches = stream(config, device.rank, device.world_size, corrupt=lambda p: device.rank == last and p % 6 == 5)
    try:
        for _ in run(Regression(), batches, config, device=device):
            continue
    except TrainingStopped as e:
        return str(e)
    return "not stopped"


def _batch_norm_statistics(device: Device) -> str:
    config = two_phase_settings(total_images=24)
    ticks = list(run(TwoPhases(), stream(config, device.rank, device.world_size), config, device=device))
    modules = ticks[-1].state.recipe.modules
    return state_hash({name: b for name, b in modules.named_buffers() if "running" in name})


def gradients(device: Device) -> dict[str, Any]:
    """The mean gradient of one ragged global batch in float64, by both syncs, and through gathers over ranks."""
    out = {"flat": _gradient(device, "flat"), "overlap": _gradient(device, "overlap"), "gather": _contrastive(device)}
    return out | {kind: _regularised(device, kind) for kind in ("vicreg", "sigreg")}


def double_model() -> nn.Sequential:
    """A small double-precision model whose last layer never gets a gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Linear(1, 7)).double()


def _gradient(device: Device, kind: str) -> tuple[list[float], list[float]]:
    config = settings(global_batch=12, micro_batch=1, total_images=12)
    model = double_model()
    params = list(model.parameters())
    sync = FlatSync(params, device) if kind == "flat" else OverlapSync(params, device, bucket_bytes=64)
    batches = list(stream(config, device.rank, device.world_size)(0))
    for _ in range(2):  # the second time with used buffers
        sync.begin()
        sums = torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(batches):
            if i == len(batches) - 1:
                sync.last_micro()
            total, weight = ragged_loss(model, batch)
            total.backward(inputs=params)
            sums += torch.stack([total.detach(), weight])
        gradient, totals = sync.reduce(sums)
    return (gradient / totals[1]).tolist(), totals.tolist()


def ragged_loss(model: nn.Sequential, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    x, y = torch.from_numpy(batch["x"]).double(), torch.from_numpy(batch["y"]).double()
    weight = 1.0 + torch.from_numpy(batch["position"]).double() % 3
    return (weight * (model[:3](x).squeeze(1) - y) ** 2).sum(), weight.sum()


def _contrastive(device: Device) -> list[float]:
    config = settings(global_batch=6, micro_batch=6 // device.world_size, total_images=6)
    model = double_model()
    (batch,) = list(stream(config, device.rank, device.world_size)(0))
    x = torch.from_numpy(batch["x"]).double()
    z = nn.functional.normalize(model[:2](x), dim=1)
    everyone = device.gather_sum_grad(z)
    logits = z @ everyone.T / 0.2
    own = torch.arange(len(x)) + device.rank * len(x)
    params = list(model.parameters())
    sync = FlatSync(params, device)
    sync.begin()
    nn.functional.cross_entropy(logits, (own + 1) % len(everyone), reduction="sum").backward(inputs=params)
    gradient, _ = sync.reduce(torch.zeros(1, dtype=torch.float64))
    return gradient.tolist()


def _regularised(device: Device, kind: str) -> tuple[list[float], list[float]]:
    """The mean gradient of squares and a regulariser of two kinds of embeddings, and the loss."""
    config = settings(global_batch=6, micro_batch=6 // device.world_size, total_images=6)
    model = double_model()
    (batch,) = list(stream(config, device.rank, device.world_size)(0))
    x = torch.from_numpy(batch["x"]).double()
    chosen = RegulariserConfig(kind, regulariser_weight=0.3, regulariser_directions=8, projection_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        regulariser = Regulariser(chosen, 5, 4, device.gather_sum_grad, micro_key="micro_batch").double()
    z = model[:2](x)
    each = z.square().sum(dim=1) + regulariser([z, 2 * z - 1], step=3, global_batch=6)[0]
    model.append(regulariser)
    params = list(model.parameters())
    sync = FlatSync(params, device)
    sync.begin()
    each.sum().backward(inputs=params)
    count = torch.tensor(float(len(each)), dtype=torch.float64)
    gradient, totals = sync.reduce(torch.stack([each.detach().sum(), count]))
    return (gradient / totals[1]).tolist(), (totals / totals[1]).tolist()


def several(device: Device, folder: str) -> dict[str, Any]:
    """All of the above in one group, because starting processes is what takes the time."""
    runs = {
        name: train(device, f"{folder}/{name}", stops, **changes)
        for name, stops, changes in (
            ("whole", (), {}),
            ("once", (1,), {}),
            ("thrice", (2, 5, 9), {}),
            ("overlap", (), {"grad_sync": "overlap"}),
            ("overlap_stopped", (4,), {"grad_sync": "overlap"}),
        )
    }
    return {"runs": runs, "faults": faults(device), "gradients": gradients(device)}
