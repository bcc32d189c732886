"""Runs of each science that an earlier version wrote into tests/data/golden_runs_v1: their configs, and how they train.

A folder per science: `plan/`, a `checkpoint/` halfway, `batches.npz` (the decoded batches of the second half), and
`final/`, the artifacts at the end. Batches are stored because decoders may differ from machine to machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.train.assembly import Assembly
from pathray.train.loop import run
from pathray.train.state import TrainState

FOLDER = Path(__file__).parents[2] / "data" / "golden_runs_v1"
SCIENCES = ("ijepath", "adios", "regression", "oct")
NARROW = {"dim": 48, "depth": 2, "heads": 3}  # stands in for vit_tiny, to keep the files small
HALF, STEPS = 2, 4


def ijepath_config() -> Any:
    from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
    from pathray.config.load import load_config

    keys = (
        "data.context_fov_um=96", "data.target_fov_um=32", "data.targets_per_context=2", "data.threads=1",
        "data.min_tissue_fraction=0.1", "data.anchor_stride_fraction=0.25", "mask.min_keep=4",
        "data.target_margin_um=4", "model.name=vit_tiny", "model.pred_depth=1", "model.pred_emb_dim=48",
        "model.drop_path=0.1", "optimization.total_images_budget=16", "optimization.global_batch=4",
        "optimization.lr=2e-3",
    )  # fmt: skip
    return resolve_global_batch(load_config(RunConfig, keys, configs_dir=CONFIGS_DIR, groups=GROUPS).config, 1)


def adios_config() -> Any:
    from tests.builders.runs.adios_run import config

    return config(total_iterations=STEPS)


def regression_config() -> Any:
    from regression.config import resolve
    from tests.builders.expression import run_config

    return resolve(run_config(batch_size=4, images=16, grad_accum_steps=1), 1, 12)


def oct_config() -> Any:
    from oct.config import CONFIGS_DIR, RunConfig, resolve
    from pathray.config.load import load_config

    keys = (
        "data.image_size=[8,16,16]", "data.spacing_mm=[0.8,0.12,0.4]", "data.threads=1", "model.name=vit_tiny",
        "model.patch_size=[2,8,8]", "model.drop_path=0.1", "model.pred_dim=24", "model.pred_depth=1",
        "optimization.total_images=16", "optimization.global_batch=4", "optimization.batch_size_per_gpu=2",
        "optimization.warmup=4", "optimization.lr=1e-3", "validation.volumes=0",
    )  # fmt: skip
    return resolve(load_config(RunConfig, keys, configs_dir=CONFIGS_DIR).config, 1, 6)


def assembled(science: str, plan: Plan) -> Assembly:
    """The parts of the golden run of a science."""
    configs = {"ijepath": ijepath_config, "adios": adios_config, "regression": regression_config, "oct": oct_config}
    config = configs[science]()
    if science == "ijepath":
        from ijepath.assembly import assemble
    elif science == "adios":
        from adios.assembly import assemble
    elif science == "oct":
        from oct.assembly import assemble
    else:
        from regression.assembly import assemble
    made: Assembly = assemble(config, plan, 1)
    return made


def train(parts: Assembly, batches: Callable[[int], Iterator[dict[str, Any]]], state: TrainState, steps: int) -> None:
    """Train until `steps` steps are done."""
    for tick in run(parts.recipe, batches, parts.settings, device=Device.of("cpu"), state=state):
        if tick.step == steps:
            break


def pack(batches: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Batches as the arrays of one npz file."""
    return {f"{i}/{name}": np.asarray(value) for i, batch in enumerate(batches) for name, value in batch.items()}


def unpack(arrays: Any) -> list[dict[str, Any]]:
    """What `pack` packed."""
    batches: dict[int, dict[str, Any]] = {}
    for key in arrays.files:
        number, name = key.split("/", 1)
        batches.setdefault(int(number), {})[name] = arrays[key]
    return [batches[i] for i in sorted(batches)]
