"""Speed of one I-JEPATH training step, without Ray and without reading: ratios on a CPU, utilisation on a GPU.

    python benchmarks/step.py                                # vit_tiny and vit_small, B = 2, two threads
    python benchmarks/step.py --device cuda                  # vit_large in bf16: images/s and model-FLOP utilisation
    python benchmarks/step.py --device cuda --models vit_base --batch 64 --peak-tflops 312
    python benchmarks/step.py --overhead                     # the loop around a recipe that computes nothing

The geometry is the default profile's: contexts of 512² px whose encoder sees what four targets leave, a teacher on four
crops of 256² px, a predictor of depth 6. A step is the recipe's loss, forward and backward. On a CPU it alternates with
two versions of the same mathematics written out here, with the same weights, whose loss and gradients must agree:
`full matrix` builds every N x N attention matrix over the visible tokens; `masked` runs all tokens of the context and
masks the hidden ones. The best of the rounds counts, since other load only slows. On a busy machine look at the CPU
time with `--threads 1`. Two free cores: 1.5 minutes.

Model FLOPs are those of the matrix products of the mathematics (forward, and twice that backward; the teacher forward
only), counted by formula and checked against PyTorch's counter. Recomputation and element-wise work do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ijepath.config import ModelConfig, OptimizationConfig, RunConfig
from ijepath.data import DRAWS
from ijepath.footprints import sample_footprints, to_predictor_grid, token_counts
from ijepath.geometry import BoxRules, draw_boxes
from ijepath.model import pooled_loss
from ijepath.recipe import IJepathRecipe
from ijepath.scales import kinds
from pathray.data.order import rng
from pathray.device import Device
from pathray.errors import UserError
from pathray.nn.blocks import Block
from pathray.nn.positions import sincos_table
from pathray.nn.predictor import TokenPredictor
from pathray.nn.vit import ViT
from pathray.optim.adamw import AdamW
from pathray.train.loop import LoopSettings, PhaseOptim, run
from pathray.train.recipe import Loss, Progress

PROGRESS = Progress(0, 1000, 2)
PREDICTOR_DIM = {"vit_tiny": 192, "vit_small": 384}  # 384 for all larger ones
PEAK_TFLOPS = {  # dense bf16, by part of the device's name; the longest part that fits
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.overhead:
        loop_overhead(options.steps)
    elif Device.of(options.device).kind == "cuda":
        for name in (options.models or "vit_large").split(","):
            on_a_gpu(name, options.batch or 64, options.steps, options.peak_tflops)
    else:
        for name in (options.models or "vit_tiny,vit_small").split(","):
            on_a_cpu(name, options.batch or 2, options.rounds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--models", help="names, separated by commas")
    parser.add_argument("--batch", type=int, help="contexts per step: 2 on a CPU, 64 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="CPU: rounds of one step each")
    parser.add_argument("--steps", type=int, default=30, help="GPU and --overhead: timed steps")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, for a device that is not in the table")
    parser.add_argument("--overhead", action="store_true")
    return parser.parse_args()


def on_a_cpu(name: str, batch: int, rounds: int) -> None:
    config = run_config(name, batch)
    recipe = IJepathRecipe(config)
    micro = recipe.prepare(micro_batch(config, batch, Device.of("cpu")), PROGRESS)
    versions: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: recipe.loss("model", micro, PROGRESS).sum,
        "full matrix": lambda: plain_loss(recipe, micro, masked=False),
        "masked": lambda: plain_loss(recipe, micro, masked=True),
    }
    check_agreement(recipe, versions)
    check_flops(config, recipe, micro)
    best = {version: (float("inf"), float("inf")) for version in versions}
    for _ in range(rounds):
        for version, loss in versions.items():
            wall, cpu = timed(recipe, loss)
            best[version] = min(best[version][0], wall), min(best[version][1], cpu)
    flops = step_flops(config, recipe, batch)
    print(f"{name}, B = {batch}, {torch.get_num_threads()} threads: {flops / 1e9:.0f} GFLOP a step")
    for version, (wall, cpu) in best.items():
        ratios = f"x {wall / best['ours'][0]:.2f} in time, x {cpu / best['ours'][1]:.2f} in CPU time"
        print(f"  {version:12s} {wall:7.3f} s, {cpu:7.3f} s of CPU, {flops / wall / 1e9:5.0f} GFLOP/s   {ratios}")


def timed(recipe: IJepathRecipe, loss: Callable[[], Tensor]) -> tuple[float, float]:
    """Wall and CPU seconds of one forward and backward pass."""
    for _, p in recipe.params["model"]:
        p.grad = None
    wall, cpu = time.perf_counter(), time.process_time()
    loss().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - wall, time.process_time() - cpu


def on_a_gpu(name: str, batch: int, steps: int, peak: float | None) -> None:
    """Whole steps in bf16: loss, backward, AdamW, EMA; the pixels are on the device already."""
    device = Device.of("cuda")
    config = run_config(name, batch)
    recipe = IJepathRecipe(config)
    recipe.modules.to(device.torch_device)
    optimizer = AdamW(recipe.params["model"], lr=1e-4, weight_decay=0.04)
    batch_on_device = micro_batch(config, batch, device)
    ok = torch.ones((), device=device.torch_device)

    def step() -> None:
        micro = recipe.prepare(dict(batch_on_device), PROGRESS)
        with device.autocast("bf16"):
            loss = recipe.loss("model", micro, PROGRESS)
        (loss.sum / loss.weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step(ok)
        optimizer.zero_grad()
        recipe.after_step(PROGRESS)

    for _ in range(5):
        step()
    device.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    device.synchronize()
    seconds = (time.perf_counter() - began) / steps
    flops, title = step_flops(config, recipe, batch), torch.cuda.get_device_name()
    peak = peak or peak_tflops(title)
    used = f"{flops / seconds / 1e12 / peak:.1%} of {peak:.0f} TFLOP/s" if peak else "peak unknown: --peak-tflops"
    print(
        f"{name}, B = {batch}, bf16, {title}: {seconds * 1e3:.1f} ms a step, {batch / seconds:.1f} images/s, "
        f"{flops / seconds / 1e12:.1f} TFLOP/s ({used}), {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


def peak_tflops(title: str) -> float | None:
    fitting = [part for part in PEAK_TFLOPS if all(word in title for word in part.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def run_config(name: str, batch: int) -> RunConfig:
    model = ModelConfig(name=name, pred_depth=6, pred_emb_dim=PREDICTOR_DIM.get(name, 384))
    optimization = OptimizationConfig(total_images_budget=1000 * batch, global_batch=batch)
    return RunConfig(model=model, optimization=optimization)


def micro_batch(config: RunConfig, count: int, device: Device) -> dict[str, Any]:
    """A batch like the reader's, with random pixels: boxes, visible and predicted tokens by the run's own rules."""
    geometry = kinds(config)[0].geometry
    counts = token_counts(geometry, config.mask, config.data.align_targets_to_patch_grid)
    rows = []
    for position in range(count):
        generator = rng(config.data.seed, "benchmark", position)
        boxes, _ = draw_boxes(generator, geometry, BoxRules.of(config.data))
        tokens = sample_footprints(generator, boxes, geometry, config.mask, counts)
        rows.append(
            {
                "context": generator.integers(0, 256, (geometry.context_px, geometry.context_px, 3), np.uint8),
                "targets": generator.integers(0, 256, (geometry.targets, *geometry.crop, 3), np.uint8),
                "context_keep": tokens.keep,
                "context_index": to_predictor_grid(tokens.keep, geometry),
                "target_predict": tokens.predict,
                "draws": generator.random((2, DRAWS), np.float32),
            }
        )
    return device.to_device({key: np.stack([row[key] for row in rows]) for key in rows[0]})


# --- the same mathematics, written out ------------------------------------------------------------------------------


def plain_loss(recipe: IJepathRecipe, micro: dict[str, Tensor], *, masked: bool) -> Tensor:
    """Σ over the batch of SmoothL1(mean z, mean h), every attention matrix built."""
    student, teacher, predictor = (recipe.modules[n] for n in ("student", "teacher", "predictor"))
    assert isinstance(student, ViT) and isinstance(teacher, ViT) and isinstance(predictor, TokenPredictor)
    keep, wanted = micro["context_keep"], micro["target_predict"]
    with torch.no_grad():
        h = plain_vit(teacher, micro["targets"], None, masked=False)
        h = F.layer_norm(h, h.shape[-1:]).reshape(*wanted.shape[:2], *h.shape[1:])
    context = predictor.embed(plain_vit(student, micro["context"], keep, masked=masked))
    queries = predictor.mask_token.expand(len(keep), wanted[0].numel(), -1)
    places = torch.cat([micro["context_index"], wanted.flatten(1)], 1)
    tokens = torch.cat([context, queries], 1) + sincos_table((recipe.grid, recipe.grid), predictor.dim)[places]
    for block in predictor.blocks:
        tokens = plain_block(block, tokens)
    z = predictor.proj(predictor.norm(tokens[:, keep.shape[1] :]))
    return pooled_loss(z.reshape(*wanted.shape, -1), h).sum()


def plain_vit(vit: ViT, x: Tensor, keep: Tensor | None, *, masked: bool) -> Tensor:
    """Tokens of the patches in `keep`: picked after the embedding, or, `masked`, after the last block."""
    c = vit.config
    kernel = vit.patch_embed.proj.weight.reshape(c.dim, c.in_channels, *c.patch_size)
    tokens = F.conv2d(x, kernel, vit.patch_embed.proj.bias, stride=c.patch_size).flatten(2).mT
    grid = tuple(s // p for s, p in zip(x.shape[2:], c.patch_size, strict=True))
    tokens = tokens + sincos_table(grid, c.dim, c.grid)
    allowed = None
    if keep is not None and masked:
        allowed = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, keep, True)[:, None, None, :]
    elif keep is not None:
        tokens = picked(tokens, keep)
    for block in vit.blocks:
        tokens = plain_block(block, tokens, allowed)
    if keep is not None and masked:
        tokens = picked(tokens, keep)
    normed: Tensor = vit.norm(tokens)
    return normed


def plain_block(block: torch.nn.Module, x: Tensor, allowed: Tensor | None = None) -> Tensor:
    assert isinstance(block, Block)
    B, N, D = x.shape
    q, k, v = block.attn.qkv(block.norm1(x)).reshape(B, N, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    x = x + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, D))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def picked(tokens: Tensor, keep: Tensor) -> Tensor:
    return tokens[torch.arange(len(keep))[:, None], keep]


def check_agreement(recipe: IJepathRecipe, versions: dict[str, Callable[[], Tensor]]) -> None:
    """Loss to 1e-5, gradients to 1e-4 of each parameter's largest, for all versions; exits otherwise."""
    params = [p for _, p in recipe.params["model"]]
    results = {}
    for version, compute in versions.items():
        loss = compute()
        results[version] = loss.detach(), torch.autograd.grad(loss, params)
    loss, gradients = results["ours"]
    for version, (other_loss, others) in results.items():
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=0)
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, others, strict=True))
        assert apart < 1e-4, f"gradients of {version} are {apart:.1e} apart"


# --- model FLOPs ----------------------------------------------------------------------------------------------------


def step_flops(config: RunConfig, recipe: IJepathRecipe, batch: int) -> float:
    """FLOPs of one step, forward and backward, all contexts of the batch."""
    teacher, student, predictor = forward_flops(config, recipe)
    return batch * (teacher + 3 * student + 3 * predictor)


def forward_flops(config: RunConfig, recipe: IJepathRecipe) -> tuple[float, float, float]:
    """(teacher, student, predictor) of one context, forward."""
    geometry = kinds(config)[0].geometry
    counts = token_counts(geometry, config.mask, config.data.align_targets_to_patch_grid)
    student, predictor = recipe.modules["student"], recipe.modules["predictor"]
    assert isinstance(student, ViT) and isinstance(predictor, TokenPredictor)
    c, seen, asked = student.config, counts.keep, geometry.targets * counts.predict
    patch = 2 * c.in_channels * geometry.patch**2 * c.dim
    crop = geometry.teacher_grid[0] * geometry.teacher_grid[1]
    teacher = geometry.targets * (crop * patch + transformer_flops(crop, c.dim, c.depth, c.mlp_ratio))
    student_flops = seen * patch + transformer_flops(seen, c.dim, c.depth, c.mlp_ratio)
    ends = 2 * c.dim * predictor.dim * (seen + asked)
    return teacher, student_flops, ends + transformer_flops(seen + asked, predictor.dim, len(predictor.blocks), 4.0)


def transformer_flops(tokens: int, dim: int, depth: int, mlp_ratio: float) -> float:
    """2 per multiply-add: the projections (4 + 2·ratio)·d² per token, and q kᵀ and the weighted sum of v."""
    return depth * (2 * tokens * (4 + 2 * mlp_ratio) * dim**2 + 4 * tokens**2 * dim)


def check_flops(config: RunConfig, recipe: IJepathRecipe, micro: dict[str, Tensor]) -> None:
    """The formula against PyTorch's counter on the written-out forward pass, to 1%."""
    one = {k: v[:1] for k, v in micro.items()} | {"targets": micro["targets"][: micro["target_predict"].shape[1]]}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        plain_loss(recipe, one, masked=False)
    formula = sum(forward_flops(config, recipe))
    assert abs(counter.get_total_flops() / formula - 1) < 0.01, (counter.get_total_flops(), formula)


# --- the loop alone -------------------------------------------------------------------------------------------------


class NullRecipe:
    """Two weights and next to no arithmetic, so that the loop's own time remains."""

    def __init__(self) -> None:
        self.modules = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1)})
        self.params = {"model": [(f"net.{n}", p) for n, p in self.modules["net"].named_parameters()]}

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return micro

    def loss(self, phase: str, micro: dict[str, Any], progress: Progress) -> Loss:
        out = self.modules["net"](micro["x"])
        return Loss(out.square().sum(), torch.tensor(float(len(out))))

    def after_step(self, progress: Progress) -> None:
        return

    def signals(self) -> dict[str, float]:
        return {}


def loop_overhead(steps: int) -> None:
    steps = max(steps, 300)
    settings = LoopSettings(
        seed=0, global_batch=8, micro_batch=8, total_images=8 * steps, optim={"model": PhaseOptim()}, log_every=800
    )

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for first in range(start, 8 * steps, 8):
            yield {"position": np.arange(first, first + 8), "x": np.ones((8, 1), np.float32)}

    took = [tick.step_s for tick in run(NullRecipe(), batches, settings, device=Device.of("cpu"))]
    took = took[20:]
    print(f"loop around a null recipe: {np.median(took) * 1e3:.2f} ms a step (mean {np.mean(took) * 1e3:.2f}; bar 5)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
