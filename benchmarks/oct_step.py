"""Speed of OCT training at the true geometry, without Ray and without reading: visible tokens against all, and a step.

    python benchmarks/oct_step.py                                    # one block as wide as vit_base, and vit_micro
    python benchmarks/oct_step.py --encoders "" --step vit_base --variants "" --rounds 1   # minutes of a core

Volumes of 64 × 384 × 384 in patches of 4 × 16 × 16: 9,216 tokens, of which the encoder sees 40%. One volume, one
thread, processor time, since other load slows the clock more; the best of the rounds counts. Five free minutes.

`--encoders`: forward and backward of the context encoder on its visible tokens and on all, in turn, against the ratio
of their FLOPs. FLOPs are those of the matrix products, by formula, checked against PyTorch's counter. `model:depth`
takes fewer blocks: they are all alike.

`--step`: the parts of a whole training step. The loss of the parts is that of the recipe, or the benchmark stops. Then
whole steps in processes of their own: as configured on a CPU, with `model.checkpointing`, and under autocast to
bfloat16; with the memory that a step needs above the model's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from oct.augment import count_draws
from oct.config import OptimizationConfig, RunConfig, resolve
from oct.loss import normalized_mse
from oct.masks import MaskSampler
from oct.model import build_encoder, encode_context, encode_target
from oct.recipe import OctRecipe
from oct.sections import ModelConfig
from oct.volume import GREY
from pathray.data.order import rng
from pathray.nn.vit import ViT, take
from pathray.optim.adamw import AdamW
from pathray.train.recipe import Progress

PROGRESS = Progress(0, 1000, 1)
VARIANTS = {"plain": (False, False), "checkpointing": (True, False), "autocast to bf16": (False, True)}
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="vit_base:1,vit_micro", help="model or model:blocks, with commas")
    parser.add_argument("--step", default="vit_micro", help="a model; empty: no steps")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of a whole step")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in filter(None, options.encoders.split(",")):
        compare_encoders(name, options.rounds)
    if options.step:
        split_step(options.step, options.rounds)
        for name in filter(None, options.variants.split(",")):
            context = multiprocessing.get_context("spawn")
            child = context.Process(target=whole_steps, args=(options.step, name, options.rounds))
            child.start()
            child.join()
            assert child.exitcode == 0, name


def configure(name: str, **model: Any) -> RunConfig:
    sections = ModelConfig(name=name, **model)
    optimization = OptimizationConfig(total_images=1000, global_batch=1, batch_size_per_gpu=1)
    return resolve(RunConfig(model=sections, optimization=optimization), workers=1, rows=1000)


def micro_of(config: RunConfig) -> dict[str, Tensor]:
    """A volume of smooth random greys that fills its grid, with draws and a mask, as the loop places it."""
    g, size = rng(0, "benchmark", 0), tuple(config.data.image_size)
    coarse = torch.from_numpy(g.random((1, 1, 8, 24, 24), np.float32))
    image = torch.nn.functional.interpolate(coarse, size, mode="trilinear")[:, 0] * GREY
    unit = {
        "inside": np.array([[0, n] for n in size], np.int32),
        "draws": g.random(count_draws(config), np.float32),
        **MaskSampler.of(config).sample(g),
    }
    return {"image": image.to(torch.int16)} | {name: torch.from_numpy(value)[None] for name, value in unit.items()}


def processor_seconds(work: Work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def compare_encoders(name: str, rounds: int) -> None:
    """Print time and FLOPs of all tokens as multiples of the visible ones'."""
    model, _, depth = name.partition(":")
    config = configure(model)
    encoder = build_encoder(config)
    del encoder.blocks[int(depth or len(encoder.blocks)) :]
    micro = micro_of(config)
    x, keep = torch.randn(1, 1, *config.data.image_size), micro["context_0"].long()
    counts = {"visible": keep.shape[1], "all": int(np.prod(config.tokens))}
    index = {"visible": keep, "all": None}
    check_formula(encoder, x, keep)
    best = dict.fromkeys(index, float("inf"))
    for _ in range(rounds):
        for which, chosen in index.items():
            encoder.zero_grad()
            best[which] = min(best[which], processor_seconds(partial(pass_through, encoder, x, chosen)))
    flops = {which: 3 * forward_flops(encoder, n) for which, n in counts.items()}
    time_ratio, flop_ratio = best["all"] / best["visible"], flops["all"] / flops["visible"]
    print(
        f"{name}, {counts['visible']:,} of {counts['all']:,} tokens, forward and backward: {best['visible']:.2f} and "
        f"{best['all']:.2f} s, x {time_ratio:.2f}; FLOPs x {flop_ratio:.2f}; {time_ratio / flop_ratio:.2f} of that; "
        f"{flops['visible'] / best['visible'] / 1e9:.0f} and {flops['all'] / best['all'] / 1e9:.0f} GFLOP/s",
        flush=True,
    )


def pass_through(encoder: ViT, x: Tensor, keep: Tensor | None) -> None:
    encoder(x, keep=keep).square().mean().backward()


def forward_flops(encoder: ViT, tokens: int) -> float:
    """Of the matrix products for one volume: patches, and per block 12 N D² + 2 N² D products and sums."""
    dim = encoder.config.dim
    voxels = int(np.prod(encoder.config.patch_size))
    block = 24 * tokens * dim**2 + 4 * tokens**2 * dim
    return 2 * tokens * voxels * dim + len(encoder.blocks) * block


def check_formula(encoder: ViT, x: Tensor, keep: Tensor) -> None:
    """AssertionError where PyTorch's counter finds other FLOPs. Its counter knows attention as two products only."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    few = keep[:, :256]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(x, keep=few)
    expected = forward_flops(encoder, few.shape[1])
    assert abs(counter.get_total_flops() / expected - 1) < 1e-6, (counter.get_total_flops(), expected)


def split_step(name: str, rounds: int) -> None:
    """Print the processor seconds of each part of a step, forward and backward, and their shares."""
    config = configure(name)
    recipe, raw = OctRecipe(config), micro_of(config)
    optimizer = AdamW(recipe.params["model"], lr=1e-4, weight_decay=0.05)
    with torch.no_grad():
        expected = float(recipe.loss("model", recipe.prepare(raw, PROGRESS), PROGRESS).sum)
    best: dict[str, float] = {}
    for number in range(rounds):
        spent, loss = parts_of(recipe, optimizer, raw)
        assert number or abs(loss - expected) < 1e-5, (loss, expected)
        best = {part: min(best.get(part, float("inf")), seconds) for part, seconds in spent.items()}
    total = sum(best.values())
    shares = ", ".join(f"{part} {seconds:.2f} s ({seconds / total:.1%})" for part, seconds in best.items())
    print(f"{name}, parts of a step: {shares}", flush=True)


def parts_of(recipe: OctRecipe, optimizer: AdamW, raw: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """Seconds of each part of one step, whose graph is cut between the parts, and the step's loss."""
    optimizer.zero_grad()
    spent: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        out = work()
        spent[part] = spent.get(part, 0.0) + time.process_time() - begin
        return out

    micro = timed("augmentation", lambda: recipe.prepare(raw, PROGRESS))
    context, target = micro["context_0"], micro["target_0"]
    h = timed("teacher", lambda: encode_target(recipe.encoder, micro["image"]))
    tokens = timed("context encoder", lambda: encode_context(recipe.student, micro["image"], context))
    cut = tokens.detach().requires_grad_()
    z = timed("predictor", lambda: recipe.modules["predictor"](cut, context, target, recipe.grid))
    out = z.detach().requires_grad_()
    loss = timed("loss", lambda: normalized_mse(out, take(h, target)).sum())
    timed("loss", loss.backward)
    timed("predictor", lambda: z.backward(out.grad))
    timed("context encoder", lambda: tokens.backward(cut.grad))
    assert all(p.grad is not None for _, p in recipe.params["model"])
    timed("optimizer", optimizer.step)
    timed("teacher's average", lambda: recipe.after_step(PROGRESS))
    return spent, float(loss.detach())


def whole_steps(name: str, variant: str, rounds: int) -> None:
    """In a process of its own: print the best step's processor seconds, and its peak above the memory before."""
    torch.set_num_threads(1)
    checkpointing, is_cast = VARIANTS[variant]
    config = configure(name, checkpointing=checkpointing)
    recipe, raw = OctRecipe(config), micro_of(config)
    before = peak_mb()

    def step() -> None:
        recipe.modules.zero_grad()
        micro = recipe.prepare(raw, PROGRESS)
        with torch.autocast("cpu", torch.bfloat16) if is_cast else nullcontext():
            loss = recipe.loss("model", micro, PROGRESS)
        loss.sum.backward()  # type: ignore[no-untyped-call]

    best = min(processor_seconds(step) for _ in range(rounds))
    print(
        f"{name}, forward and backward, {variant}: {best:.2f} s, {peak_mb() - before:,.0f} MB above the start",
        flush=True,
    )


def peak_mb() -> float:
    """Largest resident memory of this process; getrusage's would be that of its parent, where that was larger."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
