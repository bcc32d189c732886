"""Speed of whole ADIOS steps, both phases, without Ray and without reading: images/s, and the gain from packing.

    python benchmarks/step_adios.py --device cuda                          # vit_base, vit_unet, 224², 64 images, bf16
    python benchmarks/step_adios.py --device cuda --models vit_small,vit_large --batch 32
    python benchmarks/step_adios.py                                        # a CPU: vit_tiny, the U-Net, 96², 8 images

The product's loop and recipe (augmentation on the device, two networks, two optimizers), fed from memory, without
stochastic depth (its draws are per batch, which differs between the two sides). `packed` is what trains: whole views
and crops in one sequence. `by size` runs the student once per image size, each as its own batch. Losses and gradient
norms of both phases agree in the first step, or the benchmark stops. Rounds alternate. The best of each counts, since
other load only slows, and the worst is printed next to it. Two free cores: two minutes.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adios.augment import count_draws
from adios.config import (
    CropConfig,
    DataConfig,
    MaskModelSettings,
    OptimizationConfig,
    RunConfig,
    StudentConfig,
    resolve,
)
from adios.recipe import AdiosRecipe
from adios.settings import loop_settings
from adios.student import Student, Tokens
from pathray.data.order import rng
from pathray.device import PRECISIONS, Device
from pathray.nn.attention import attention_backend
from pathray.train.loop import Tick, run

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
        crops=CropConfig(size=min(96, size // 32 * 16)),
        student=StudentConfig(drop_path=0.0),  # what is dropped depends on how images are batched
        mask_model=MaskModelSettings(drop_path=0.0),
        optimization=OptimizationConfig(precision=options.precision if gpu else "fp32"),
    )
    return resolve(config, workers=1)


def compare(config: RunConfig, device: Device, rounds: int, steps: int) -> None:
    batch, runs, memory = int(config.global_batch or 0), {}, ""
    if device.kind == "cuda":  # nothing of the model before this one
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    for name in ("packed", "by size"):
        ticks = training(config, device, packed=name == "packed")
        flush = next(ticks).flush
        assert flush is not None
        runs[name] = ticks, flush()
        for _ in range(WARM_UP):
            next(ticks)
        if name == "packed" and device.kind == "cuda":  # a CPU's peak is the process's, whatever it did before
            memory = f", {device.memory()['memory_peak_gib']:.1f} GiB"
    check_agreement(runs["packed"][1], runs["by size"][1], 1e-4 if device.kind == "cpu" else 5e-2)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (ticks, _) in runs.items():
            seconds[name].append(timed(ticks, device, steps))
    precision = "fp32" if device.kind == "cpu" else config.optimization.precision
    kernel = attention_backend(device.torch_device, PRECISIONS[precision] or torch.float32)
    title = torch.cuda.get_device_name() if device.kind == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{config.arch}, {config.mask_model_type}, {config.data.image_size}², {batch} images a step, {precision}, "
        f"{title}, packed attention: {kernel}{memory}"
    )
    for name, each in seconds.items():
        best, worst, ratio = min(each), max(each), min(each) / min(seconds["packed"])
        figures = f"{best * 1e3:8.1f} ms a step (worst {worst * 1e3:.1f}), {batch / best:7.1f} images/s"
        print(f"  {name:8s} {figures}   x {ratio:.3f}")


def training(config: RunConfig, device: Device, *, packed: bool) -> Iterator[Tick]:
    """The ticks of a run that is fed the same images at every step."""
    settings = loop_settings(config, 1)
    recipe = AdiosRecipe(config)
    if not packed:
        recipe.modules["student"].__class__ = BySize
    micro = images(config)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for first in range(start, settings.total_images, settings.global_batch):
            yield {**micro, "position": np.arange(first, first + settings.global_batch)}

    return run(recipe, batches, settings, device=device)


def check_agreement(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    """Losses to `tolerance`, gradient norms to ten times that: the first step begins with the same weights."""
    for key, by in (("loss/student", 1), ("loss/mask", 1), ("grad_norm/student", 10), ("grad_norm/mask", 10)):
        apart = abs(found[key] / expected[key] - 1)
        assert apart < by * tolerance, f"{key}: {found[key]} packed, {expected[key]} by size"


def timed(ticks: Iterator[Tick], device: Device, steps: int) -> float:
    """Seconds per step, the mean over `steps`."""
    device.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        next(ticks)
    device.synchronize()
    return (time.perf_counter() - began) / steps


def images(config: RunConfig) -> dict[str, Any]:
    """Smooth random colours, and the draws of their augmentation."""
    count, size = int(config.global_batch or 0), config.data.image_size
    g = rng(config.seed, "benchmark", 0)
    coarse = torch.from_numpy(g.random((count, 3, 8, 8), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    pixels = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return {"image": pixels, "draws": g.random((count, count_draws(config)), np.float32), "corrupt": 0}


if __name__ == "__main__":
    main()
