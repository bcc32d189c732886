"""Speed and memory of the aggregators: training steps next to torchmil, the scan, TransMIL on a large slide.

    python benchmarks/mil_models.py                        # everything; two free cores: five minutes
    python benchmarks/mil_models.py --only abmil,memory    # abmil, bags, transmil, scan, memory
    PYTHONPATH=LIBRARY python benchmarks/mil_models.py     # where torchmil is in a folder of its own

torchmil is not a dependency: without it, its comparisons are left out and the script says so. Both sides have the same
widths (an instance embedding of 512, attention of 384, 8 heads, 256 landmarks), no dropout, and one step is forward,
loss and backward. Pairs alternate; a ratio is of processor time within a pair, and the median of `--pairs` counts,
since other load hits both. `scan` runs in a process whose allocator keeps large blocks, or its larger size would
measure the kernel clearing pages. `memory` is the peak of a process of its own, less that of one that only imports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mil.model.slide_model import build_model
from pathray.nn.ssd import ssd_scan

D, E, A = 1024, 512, 384
SIZES = (500, 1500, 2500, 3500, 4500, 5500, 6500, 8000)
POOLED = {  # of glibc: blocks of 32 MiB and more, else fetched from the kernel at each use, come from its pool
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
Step = Callable[[], Any]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    wanted = options.only.split(",")
    if "child" in wanted:
        return large_slide(options.instances, options.width, options.checkpointing, options.train)
    parts = {"abmil": abmil, "bags": bags, "transmil": transmil, "scan": scan, "memory": memory}
    for name in wanted:
        parts[name](options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="abmil,bags,transmil,scan,memory")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--instances", type=int, default=50_000, help="of `memory`")
    parser.add_argument("--width", type=int, default=1536, help="of the features of `memory`")
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def abmil(options: argparse.Namespace) -> None:
    x = torch.randn(1, 4096, D)
    other = peer_abmil()
    if other is not None:
        report("ABMIL, 1 × 4096 × 1024: time over torchmil's", training(ours("abmil"), x), training(other, x), options)


def bags(options: argparse.Namespace) -> None:
    x = torch.full((len(SIZES), max(SIZES), D), 0.0)
    mask = torch.zeros(len(SIZES), max(SIZES), dtype=torch.bool)
    for i, n in enumerate(SIZES):
        x[i, :n], mask[i, :n] = torch.randn(n, D), True
    other = peer_abmil()
    if other is not None:
        step = training(ours("abmil"), x, mask)
        report(
            "ABMIL, 8 bags of 500 to 8000: torchmil's padded time over ours", training(other, x, mask), step, options
        )


def transmil(options: argparse.Namespace) -> None:
    x, model = torch.randn(1, 4096, D), ours("transmil")
    padded = torch.cat([x, torch.full((1, 904, D), torch.nan)], dim=1)
    mask = torch.arange(5000)[None] < 4096
    with torch.no_grad():
        model.eval()
        error = (model(padded, mask).slide_embedding - model(x).slide_embedding).abs().max().item()
        model.train()
    print(f"TransMIL, 4096 of 5000 instances real: largest difference of the embedding {error:.1e}")
    if (models := torchmil()) is not None:
        other = models.TransMIL((D,), att_dim=E, n_heads=8, n_landmarks=256)
        step = training(model, x)
        report("TransMIL, 1 × 4096 × 1024: torchmil's time over ours", training(other, x), step, options)


def scan(options: argparse.Namespace) -> None:
    """Forward and backward of the scan of one layer: 16 heads of 64, 64 states."""

    def step(length: int, run: Callable[..., Tensor]) -> Step:
        x, b, c = torch.randn(1, length, 16, 64), torch.randn(1, length, 64), torch.randn(1, length, 64)
        dt, a = torch.rand(1, length, 16) / 10, -torch.rand(16)
        values = [v.requires_grad_() for v in (x, dt, a, b, c)]
        return lambda: torch.autograd.grad(run(*values).sum(), values)

    if POOLED.keys() - os.environ.keys():
        flags = ["--only", "scan", "--pairs", str(options.pairs), "--threads", str(options.threads)]
        subprocess.run([sys.executable, __file__, *flags], check=True, env=dict(os.environ) | POOLED)
        return
    for length in (2048, 8192):
        title = f"scan, {2 * length} steps: time over {length} steps'"
        report(title, step(2 * length, ssd_scan), step(length, ssd_scan), options)
    report(
        "scan, 4096 steps: a sequential scan's time over ours", step(4096, sequential), step(4096, ssd_scan), options
    )


def sequential(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence step by step."""
    state, out = torch.zeros(x.shape[0], x.shape[2], b.shape[2], x.shape[3]), []
    decays, added = (dt * a).exp(), x * dt[..., None]
    for t in range(x.shape[1]):
        state = state * decays[:, t, :, None, None] + b[:, t, None, :, None] * added[:, t, :, None]
        out.append(torch.einsum("bs,bhsp->bhp", c[:, t], state))
    return torch.stack(out, dim=1)


def memory(options: argparse.Namespace) -> None:
    base = child(options, "--instances", "1", "--width", str(options.width))
    size = ("--instances", str(options.instances), "--width", str(options.width))
    features = options.instances * options.width * 4 / 2**30
    for title, flags in (
        ("forward with attention", ()),
        ("training step", ("--train",)),
        ("training step, checkpointing", ("--train", "--checkpointing")),
    ):
        peak = child(options, *size, *flags) - base
        print(
            f"TransMIL, {options.instances} × {options.width}, {title}: {peak:.2f} GiB, {features:.2f} of it features"
        )


def child(options: argparse.Namespace, *flags: str) -> float:
    command = [sys.executable, __file__, "--only", "child", "--threads", str(options.threads), *flags]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def large_slide(instances: int, width: int, checkpointing: bool, train: bool) -> None:
    model = build_model("transmil", width, "classes", {"names": ["no", "yes"]}, checkpointing=checkpointing).train(
        train
    )
    x, mask = torch.randn(1, instances, width), torch.ones(1, instances, dtype=torch.bool)
    with torch.set_grad_enabled(train):
        out = model(x, mask, return_attention=not train)
    if train and out.logits is not None:
        out.logits.sum().backward()
    print(peak_gib())


def peak_gib() -> float:
    """The peak memory of this program; unlike getrusage's, Linux's VmHWM leaves out what its parent used."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def ours(name: str) -> nn.Module:
    head = {"names": ["no", "yes"], "loss": "bce", "outputs": 1}
    return build_model(name, D, "classes", head, dropout=0.0).train()


def peer_abmil() -> nn.Module | None:
    models = torchmil()
    embed = nn.Sequential(nn.Linear(D, E), nn.ReLU())
    return None if models is None else models.ABMIL((D,), att_dim=A, gated=True, feat_ext=embed)


def torchmil() -> Any | None:
    try:
        import torchmil.models
    except ImportError as error:
        print(f"torchmil is not installed ({error}): no comparison")
        return None
    return torchmil.models


def training(model: nn.Module, *inputs: Tensor) -> Step:
    """Forward, binary cross-entropy, backward."""
    target = torch.ones(len(inputs[0]))

    def step() -> None:
        out = model(*inputs)
        logits = out if isinstance(out, Tensor) else out.logits.squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
        model.zero_grad()

    return step


def report(title: str, above: Step, below: Step, options: argparse.Namespace) -> None:
    """Print the median of the pairs' ratios, and both medians."""
    above(), below()
    times = [(seconds(above), seconds(below)) for _ in range(options.pairs)]
    ratios = [a / b for a, b in times]
    a, b = (statistics.median(t[i] for t in times) * 1e3 for i in (0, 1))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{title}: {statistics.median(ratios):.2f} ({spread}; {a:.0f} over {b:.0f} ms of processor time)", flush=True)


def seconds(step: Step) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


if __name__ == "__main__":
    main()
