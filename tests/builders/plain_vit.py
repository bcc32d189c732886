"""The ViT of pathray.nn once more, as plain as the formulas: full attention matrices, float64, no fast path. An
oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.positions import grid_coordinates, sincos
from pathray.nn.vit import ViT


def plain_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """q, k, v [B, N, H, Dh]; allowed [B or 1, N, N] bool, True where a query (row) sees a key (column)."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def plain_rotate(x: Tensor, positions: Tensor, theta: float, prefix: int) -> Tensor:
    """Pairs (i, i + Dh/2) of x [B, N, H, Dh] as complex numbers, turned by position·θ^(−i/pairs) axis by axis."""
    B, N, H, Dh = x.shape
    axes = positions.shape[1]
    pairs = Dh // (2 * axes)
    z = torch.complex(x[..., : Dh // 2], x[..., Dh // 2 :]).clone()
    for token in range(N - prefix):
        for axis in range(axes):
            for i in range(pairs):
                angle = positions[token, axis] * theta ** (-i / pairs)
                z[:, prefix + token, :, axis * pairs + i] *= torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)


def plain_forward(vit: ViT, x: Tensor, visible: Tensor | None = None) -> Tensor:
    """Tokens [B, P+N, D] in float64 with the weights of `vit` (in evaluation); `visible` [N] bool hides patches from
    every query by masking them as keys."""
    c = vit.config
    w = {name: p.detach().double() for name, p in vit.named_parameters()}
    grid = tuple(s // p for s, p in zip(x.shape[2:], c.patch_size, strict=True))
    conv = F.conv2d if len(grid) == 2 else F.conv3d
    kernel = w["patch_embed.proj.weight"].reshape(c.dim, c.in_channels, *c.patch_size)
    t = conv(x.double(), kernel, w["patch_embed.proj.bias"], stride=c.patch_size).flatten(2).transpose(1, 2)
    positions = torch.from_numpy(grid_coordinates(grid, c.grid))
    if c.positions == "sincos":
        t = t + torch.from_numpy(sincos(positions.numpy(), c.dim))
    elif c.positions == "learned":
        field = w["pos_embed"].T.reshape(1, c.dim, *c.grid)
        if grid != c.grid:
            field = plain_cubic(field, grid)
        t = t + field.flatten(2).transpose(1, 2)
    if vit.num_prefix:
        t = torch.cat([w["prefix_tokens"].expand(len(x), -1, -1), t], 1)
    allowed = None
    if visible is not None:
        seen = torch.cat([torch.ones(vit.num_prefix, dtype=torch.bool), visible])
        allowed = seen.expand(1, t.shape[1], -1)
    for i in range(c.depth):
        t = _block(vit, {k.removeprefix(f"blocks.{i}."): p for k, p in w.items()}, t, positions, allowed)
    return F.layer_norm(t, (c.dim,), w["norm.weight"], w["norm.bias"], 1e-6)


def plain_cubic(field: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[1, D, *old] -> [1, D, *grid]; a volume's planes first, then along the depth."""
    if len(grid) == 2:
        return F.interpolate(field, grid, mode="bicubic")
    _, D, d, h, w = field.shape
    planes = F.interpolate(field.transpose(1, 2).reshape(d, D, h, w), grid[1:], mode="bicubic")
    columns = planes.permute(2, 3, 1, 0).reshape(-1, D, d, 1)
    columns = F.interpolate(columns, (grid[0], 1), mode="bicubic")
    return columns.reshape(*grid[1:], D, grid[0]).permute(2, 3, 0, 1).reshape(1, D, *grid)


def _block(vit: ViT, w: dict[str, Tensor], t: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
    c, (B, N, D) = vit.config, t.shape

    def norm(name: str, z: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    qkv = F.linear(norm("norm1", t), w["attn.qkv.weight"], w.get("attn.qkv.bias"))
    q, k, v = (z.reshape(B, N, c.heads, -1) for z in qkv.chunk(3, -1))
    if c.qk_norm:
        q, k = norm("attn.q_norm", q), norm("attn.k_norm", k)
    if c.positions == "rope":
        q, k = (plain_rotate(z, positions, c.rope_theta, vit.num_prefix) for z in (q, k))
    out = plain_attention(q, k, v, allowed).reshape(B, N, D)
    out = F.linear(out, w["attn.proj.weight"], w["attn.proj.bias"])
    t = t + out * w.get("scale1.gamma", torch.ones(()))
    h = F.linear(norm("norm2", t), w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    h = F.gelu(h) if c.mlp == "gelu" else F.silu(h[..., : h.shape[-1] // 2]) * h[..., h.shape[-1] // 2 :]
    out = F.linear(h, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return t + out * w.get("scale2.gamma", torch.ones(()))


def shake(module: nn.Module) -> None:
    """Random values in every parameter, so that no norm, bias or scale is at its neutral start."""
    for p in module.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
