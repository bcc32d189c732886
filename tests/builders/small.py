"""The smallest I-JEPATH run with everything in it, for XLA and GPUs: a ViT of two blocks, two slides, eight steps.

Importable by name, because Ray pickles `assemble` by reference; the narrow ViT is set where the module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ijepath import assembly
from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.profile import Profile
from pathray.config.load import load_config
from pathray.data.plan import Plan
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import stream_batches
from pathray.device import Device
from pathray.nn.vit import PRESETS
from pathray.train.assembly import Assembly
from pathray.train.loop import Tick, TrainState, run
from tests.builders.anchor_catalog import planned
from tests.builders.cohort import speckled_cohort

PRESETS["vit_tiny"] = {"dim": 48, "depth": 2, "heads": 3}
G, MICRO, STEPS = 8, 4, 8

KEYS = (
    "data.context_fov_um=96", "data.target_fov_um=32", "data.targets_per_context=2", "data.min_tissue_fraction=0.1",
    "data.anchor_stride_fraction=0.25", "data.threads=1", "mask.min_keep=4", "data.target_margin_um=4",
    "model.name=vit_tiny", "model.pred_depth=1", "model.pred_emb_dim=48", "model.use_bfloat16=false",
    f"optimization.total_images_budget={G * STEPS}", f"optimization.global_batch={G}",
    f"optimization.micro_batch={MICRO}", "optimization.lr=2e-3", f"training.log_every={G}", "logging.write_tag=small",
)  # fmt: skip


def config(*keys: str) -> RunConfig:
    """The run config, its global batch resolved; `keys` come last."""
    return resolve_global_batch(
        load_config(RunConfig, (*KEYS, *keys), configs_dir=CONFIGS_DIR, groups=GROUPS).config, 1
    )


def assemble(run_config: RunConfig, plan: Plan, world: int) -> Assembly:
    """I-JEPATH's own parts, looked at by all ranks after every step."""
    parts = assembly.assemble(run_config, plan, world)
    parts.settings = replace(parts.settings, poll_every_steps=1)
    return parts


def slides_plan(folder: Path) -> Plan:
    """Two speckled slides of 0.5 mpp, indexed, anchored, planned."""
    data = config().data
    profile = Profile(**{f.name: getattr(data, f.name) for f in fields(Profile)})
    return planned(folder, speckled_cohort(folder), profile)


def stream(parts: Assembly, plan: Plan) -> Callable[[int], Iterator[dict[str, Any]]]:
    """`batches` of a run in one process, without Ray."""
    lookup, settings = Lookup(plan, parts.order), parts.settings

    def batches(start: int) -> Iterator[dict[str, Any]]:
        rows = rank_rows(lookup, start, settings.total_images, settings.global_batch, 0, 1, settings.micro_batch)
        for batch in stream_batches(rows, parts.reader, lookup, parts.decode):
            batch.pop("faults")
            yield batch

    return batches


State = tuple[dict[str, Tensor], dict[str, Any]]


def train(
    recipe: Any,
    batches: Callable[[int], Iterator[dict[str, Any]]],
    settings: Any,
    device: Device,
    *,
    stop_at: int | None = None,
    state: State | None = None,
    watch: Any = None,
) -> tuple[list[Tick], list[int], State]:
    """Ticks of a run (to its end, or to `stop_at` steps), the compilations counted after each, and its state as a
    checkpoint holds it."""
    from pathray.store.checkpoint import cpu_copy

    held = TrainState(recipe, settings, device)
    if state is not None:
        held.load(*state)
    ticks, compilations = [], []
    for tick in run(recipe, batches, settings, device=device, state=held):
        ticks.append(tick)
        if watch is not None:
            watch.observe(tick)
        compilations.append(device.compile_count())
        if tick.step == stop_at:
            break
    return ticks, compilations, (cpu_copy(held.tensors()), held.meta())


def losses(ticks: Sequence[Tick]) -> list[float]:
    """The loss of every step, where each was logged."""
    found = [tick.metrics["loss"] for tick in ticks if tick.metrics is not None]
    assert len(found) == len(ticks), "every step is logged"
    return found
