"""Speed of whole ADIOS steps, both phases, without Ray and without reading: images/s, and what packing gives in them.

    python benchmarks/step_adios.py --device cuda                          # vit_base, vit_unet, 224², 64 images, bf16
    python benchmarks/step_adios.py --device cuda --models vit_small,vit_large --batch 32
    python benchmarks/step_adios.py                                        # a CPU: vit_tiny, the U-Net, 96², 8 images

The product's loop and recipe (augmentation on the device, two networks, two optimizers), fed from memory. `packed` is
what is trained: whole views and crops in one sequence. `by size` runs the student once per size of image instead, each
a batch of its own; both see the same images and end with the same loss to the precision's rounding, or the benchmark
stops. The best of the rounds counts, since other load only ever slows. Two free cores: 1.5 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adios.augment import draws_needed
from adios.config import DataConfig, MaskModelSettings, OptimizationConfig, RunConfig, StudentConfig, resolve
from adios.recipe import AdiosRecipe
from adios.settings import loop_settings
from adios.student import Student, Tokens
from core.device import Device
from core.nn.attention import attention_backend
from core.order import rng
from core.train.loop import TrainState, run

WARM_UP = 3


class BySize(Student):
    """The student without packing."""

    def tokens(self, batches: list[Tensor]) -> list[Tokens]:  # type: ignore[override]
        return [super(BySize, self).tokens([batch])[0] for batch in batches]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    device = Device.of(options.device)
    gpu = device.kind == "cuda"
    for name in (options.models or ("vit_base" if gpu else "vit_tiny")).split(","):
        config = run_config(name, options, gpu)
        compare(config, device, options.rounds, options.steps or (20 if gpu else 2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--models", help="students, separated by commas")
    parser.add_argument("--mask-model", help="adios | vit_unet; the quick one on a CPU")
    parser.add_argument("--batch", type=int, help="images per step: 8 on a CPU, 64 on a GPU")
    parser.add_argument("--image-size", type=int, help="96 on a CPU, 224 on a GPU")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"), help="on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed steps of a round: 2 on a CPU, 20 on a GPU")
    return parser.parse_args()


def run_config(name: str, options: argparse.Namespace, gpu: bool) -> RunConfig:
    size = options.image_size or (224 if gpu else 96)
    config = RunConfig(
        arch=name,
        mask_model_type=options.mask_model or ("vit_unet" if gpu else "adios"),
        batch_size_per_gpu=options.batch or (64 if gpu else 8),
        total_iterations=10_000,
        viz_freq=0,
        data=DataConfig(patch_px=size, image_size=size),
        student=StudentConfig(drop_path=0.0),  # what is dropped depends on how images are batched
        mask_model=MaskModelSettings(drop_path=0.0),
        optimization=OptimizationConfig(precision=options.precision if gpu else "fp32"),
    )
    return resolve(config, workers=1)


def compare(config: RunConfig, device: Device, rounds: int, steps: int) -> None:
    batch, found = int(config.global_batch or 0), {}
    for name in ("packed", "by size"):
        found[name] = trained(config, device, rounds, steps, packed=name == "packed")
    (seconds, loss, memory), (other, other_loss, other_memory) = found["packed"], found["by size"]
    assert abs(other_loss / loss - 1) < (1e-4 if device.kind == "cpu" else 2e-2), (loss, other_loss)
    precision = loop_settings(config, 1).precision if device.kind == "cpu" else config.optimization.precision
    title = torch.cuda.get_device_name() if device.kind == "cuda" else f"{torch.get_num_threads()} threads"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    print(
        f"{config.arch}, {config.mask_model_type}, {config.data.image_size}², {batch} images a step, {precision}, "
        f"{title}, packed attention: {attention_backend(device.torch_device, dtype)}"
    )
    for name, (s, gib) in {"packed": (seconds, memory), "by size": (other, other_memory)}.items():
        print(f"  {name:8s} {s * 1e3:8.1f} ms a step, {batch / s:7.1f} images/s, {gib:5.1f} GiB   x {s / seconds:.2f}")


def trained(config: RunConfig, device: Device, rounds: int, steps: int, *, packed: bool) -> tuple[float, float, float]:
    """Seconds of a step (the best round's mean), the loss of the first step, GiB at the peak."""
    settings = loop_settings(config, 1)
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    recipe = AdiosRecipe(config)
    if not packed:
        recipe.modules["student"].__class__ = BySize
    state, micro = TrainState(recipe, settings, device), images(config)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for first in range(start, settings.total_images, settings.global_batch):
            yield {**micro, "position": np.arange(first, first + settings.global_batch)}

    ticks = run(recipe, batches, settings, device=device, state=state)
    flush = next(ticks).flush
    assert flush is not None
    loss = flush()["loss/student"]
    for _ in range(WARM_UP):
        next(ticks)
    best = float("inf")
    for _ in range(rounds):
        device.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            next(ticks)
        device.synchronize()
        best = min(best, (time.perf_counter() - began) / steps)
    memory = device.memory()["memory_peak_gib"]
    return best, loss, memory


def images(config: RunConfig) -> dict[str, Any]:
    """Smooth random colours, and the draws of their augmentation."""
    count, size = int(config.global_batch or 0), config.data.image_size
    g = rng(config.seed, "benchmark", 0)
    coarse = torch.from_numpy(g.random((count, 3, 8, 8), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    pixels = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return {"image": pixels, "draws": g.random((count, draws_needed(config)), np.float32), "corrupt": 0}


if __name__ == "__main__":
    main()
