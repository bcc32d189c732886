"""Several crop sizes through one encoder: packed, one by one, padded. Forward and backward, ratios of one run.

    python benchmarks/packing.py
    python benchmarks/packing.py --device cuda --groups 512x201,2048x41 --dim 768 --depth 12

8 sequences of 201 tokens and 32 of 41 (an image of 224² and one of 96² in patches of 16, with class token and four
registers), width 384, 4 blocks, two CPU threads, float32; bfloat16 on a GPU. `packed` is what pathray.nn does: one
sequence, attention within segments. `loop` runs one sequence at a time, `padded` all in one batch padded to the longest
with the padding masked, `block mask` the packed sequence under one dense mask. All four agree to 1e-4, or the benchmark
stops. The best of the rounds counts, since other load only slows. On a busy machine look at the CPU time with
`--threads 1`. Two free cores: 1.5 minutes. Bars: 2.2 x a loop, 1.6 x padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.device import Device
from pathray.nn.attention import attention_backend, segment_ids
from pathray.nn.blocks import Attention, Block

Run = Callable[[], Tensor]


class DenseMask(nn.Module):
    """A block's attention on a packed sequence with an explicit mask [1, 1, N, N]."""

    def __init__(self, attn: Attention, mask: Tensor) -> None:
        super().__init__()
        self.attn, self.mask = attn, mask

    def forward(self, x: Tensor, **_: object) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.attn.qkv(x).reshape(B, N, 3, self.attn.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2).reshape(B, N, D)
        projected: Tensor = self.attn.proj(out)
        return projected


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = Device.of(options.device)
    lengths = [int(n) for g in options.groups.split(",") for n in [g.split("x")[1]] * int(g.split("x")[0])]
    heads = options.dim // 64
    blocks = nn.ModuleList(Block(options.dim, heads) for _ in range(options.depth)).to(device.torch_device)
    x = torch.randn(sum(lengths), options.dim, device=device.torch_device)
    half = torch.bfloat16 if device.kind == "cuda" else torch.float32
    print(f"{options.groups} tokens, d {options.dim}, {options.depth} blocks, {device.kind}, {half}")
    print(f"packed attention: {attention_backend(device.torch_device, half)}")
    versions = ways(blocks, x, lengths)
    check_agreement(versions, blocks, exact=device.kind == "cpu")
    best = {name: (float("inf"), float("inf")) for name in versions}
    for _ in range(options.rounds):
        for name, forward in versions.items():
            wall, cpu = timed(forward, blocks, device)
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    for name, (wall, cpu) in best.items():
        ratios = f"x {wall / best['packed'][0]:.2f} in time, x {cpu / best['packed'][1]:.2f} in CPU time"
        print(f"  {name:12s} {wall * 1e3:8.1f} ms, {cpu * 1e3:8.1f} ms of CPU   {ratios}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--groups", default="8x201,32x41", help="sequences x tokens, separated by commas")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    return parser.parse_args()


def ways(blocks: nn.ModuleList, x: Tensor, lengths: list[int]) -> dict[str, Run]:
    """Each returns the tokens `[Σ lengths, D]` after all blocks."""
    longest = max(lengths)
    ids = segment_ids(tuple(lengths), x.device)
    real = torch.arange(longest, device=x.device) < torch.tensor(lengths, device=x.device)[:, None]

    def packed() -> Tensor:
        tokens = x.unsqueeze(0)
        for block in blocks:
            tokens = block(tokens, None, lengths)
        return tokens[0]

    def loop() -> Tensor:
        out = []
        for segment in torch.split(x, lengths):
            tokens = segment.unsqueeze(0)
            for block in blocks:
                tokens = block(tokens)
            out.append(tokens[0])
        return torch.cat(out)

    def padded() -> Tensor:
        tokens = x.new_zeros(len(lengths), longest, x.shape[1]).masked_scatter(real[..., None], x)
        for block in blocks:
            tokens = block(tokens, None, None, real)
        return tokens[real]

    def block_mask() -> Tensor:
        mask = (ids[:, None] == ids)[None, None]
        tokens = x.unsqueeze(0)
        for block in blocks:
            assert isinstance(block, Block)
            tokens = tokens + DenseMask(block.attn, mask)(block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return tokens[0]

    return {"packed": packed, "loop": loop, "padded": padded, "block mask": block_mask}


def backward(forward: Run, device_type: str) -> Tensor:
    with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
        out = forward()
    out.float().square().mean().backward()  # type: ignore[no-untyped-call]
    return out.detach()


def timed(forward: Run, blocks: nn.ModuleList, device: Device) -> tuple[float, float]:
    """Wall and CPU seconds of one forward and backward pass."""
    blocks.zero_grad()
    device.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    backward(forward, device.kind)
    device.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def check_agreement(versions: dict[str, Run], blocks: nn.ModuleList, *, exact: bool) -> None:
    """Tokens and gradients of all versions agree in the L2 norm: to 1e-4 in float32, to 5% in bfloat16."""
    expected: list[Tensor] = []
    for name, forward in versions.items():
        blocks.zero_grad()
        out = backward(forward, next(blocks.parameters()).device.type)
        found = [out, *(p.grad for p in blocks.parameters() if p.grad is not None)]
        expected = expected or found
        for a, b in zip(found, expected, strict=True):
            apart = float((a.float() - b.float()).norm() / b.float().norm())
            assert apart < (1e-4 if exact else 5e-2), f"{name} is {apart:.1e} apart"


if __name__ == "__main__":
    main()
