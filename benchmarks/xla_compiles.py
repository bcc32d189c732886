"""How many graphs XLA compiles for I-JEPATH, after which step the last one comes, and the cost of the first steps.

    PJRT_DEVICE=CPU CPU_NUM_DEVICES=4 python benchmarks/xla_compiles.py               # virtual devices of a CPU
    PJRT_DEVICE=TPU python benchmarks/xla_compiles.py --model vit_small --micro 64 --full --precision bf16

The loop without Ray and without reading (random pixels): every step is logged, and every second one saved (to the host
only). Run it in the environment of constraints-xla.txt. The count should stay constant from the third step on. If it
grows, a changing shape or number has entered a graph.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from step import micro_batch

from ijepath.config import DataConfig, ModelConfig, OptimizationConfig, RunConfig
from ijepath.recipe import IJepathRecipe
from pathray.device import Device
from pathray.store.checkpoint import cpu_copy
from pathray.train.loop import LoopSettings, PhaseOptim, TrainState, run


def main() -> None:
    options = arguments()
    device = Device.of("xla")
    batch = options.micro * options.accumulate
    config = run_config(options, batch)
    settings = LoopSettings(
        seed=0,
        global_batch=batch,
        micro_batch=options.micro,
        total_images=batch * options.steps,
        optim={"model": PhaseOptim(clip=1.0)},
        precision=options.precision,
        log_every=batch,
        save_every=2 * batch,
    )
    recipe = IJepathRecipe(config)
    pixels = {name: t.numpy() for name, t in micro_batch(config, options.micro, Device.of("cpu")).items()}

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for first in range(start, settings.total_images, options.micro):
            yield {**pixels, "position": np.arange(first, first + options.micro)}

    print(f"{options.model}, micro-batches of {options.micro}, {options.accumulate} a step, {device.describe()}")
    began = time.perf_counter()
    state = TrainState(recipe, settings, device)
    for tick in run(recipe, batches, settings, device=device, state=state):
        if tick.save:
            cpu_copy(tick.state.tensors())
        device.synchronize()
        now = time.perf_counter()
        saved = ", saved" if tick.save else ""
        print(f"step {tick.step}: {now - began:8.2f} s, {device.compile_count():3d} compilations so far{saved}")
        began = now


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--micro", type=int, default=4, help="a multiple of the devices")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--full", action="store_true", help="the default profile's geometry instead of 128 px contexts")
    return parser.parse_args()


def run_config(options: argparse.Namespace, batch: int) -> RunConfig:
    small = {} if options.full else {"context_fov_um": 128.0, "target_fov_um": 32.0, "target_margin_um": 4.0}
    return RunConfig(
        data=DataConfig(**small),
        model=ModelConfig(name=options.model, pred_depth=6 if options.full else 3),
        optimization=OptimizationConfig(total_images_budget=options.steps * batch, global_batch=batch),
    )


if __name__ == "__main__":
    main()
