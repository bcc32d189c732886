"""Vision transformer for images `[B, C, H, W]` and volumes `[B, C, D, H, W]` whose size is a multiple of the patch.

It can compute visible tokens only (`keep`), several image sizes as one packed sequence (`forward_packed`) and the
features of inner blocks (`intermediate`). Not here: training, preprocessing, artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathray.errors import UserError
from pathray.nn.blocks import INIT_STD, NORM_EPS, Block, MlpKind, init_transformer
from pathray.nn.positions import Rotary, resample_positions, sincos_table

PositionKind = Literal["sincos", "learned", "rope"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The architecture. `img_size` is the native size of the positions; other sizes are stretched onto it."""

    img_size: tuple[int, ...] = (224, 224)
    patch_size: tuple[int, ...] = (16, 16)
    in_channels: int = 3
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    positions: PositionKind = "sincos"
    rope_theta: float = 100.0
    registers: int = 0
    cls_token: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0  # rate of the last block; rises linearly from 0 in the first
    checkpointing: bool = False  # recompute each block in the backward pass instead of keeping its activations

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):  # lists come from JSON and YAML
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        if len(self.img_size) != len(self.patch_size) or len(self.img_size) not in (2, 3):
            found = f"{self.img_size} in patches of {self.patch_size}"
            raise UserError("image and patch must both be 2-D or both 3-D", key="img_size", found=found)
        if self.dim % self.heads or self.dim // self.heads % 2:
            found = f"{self.dim} / {self.heads}"
            raise UserError("heads must divide dim into even parts", key="heads", found=found)
        for name, allowed in (("mlp", ("gelu", "swiglu")), ("positions", ("sincos", "learned", "rope"))):
            if getattr(self, name) not in allowed:
                raise UserError("no such choice", key=name, found=getattr(self, name), expected=" or ".join(allowed))

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens per axis at the native size."""
        return _grid(self.img_size, self.patch_size)


PRESETS: dict[str, dict[str, Any]] = {
    "vit_micro": {"dim": 192, "depth": 4, "heads": 3},
    "vit_tiny": {"dim": 192, "depth": 12, "heads": 3},
    "vit_small": {"dim": 384, "depth": 12, "heads": 6},
    "vit_base": {"dim": 768, "depth": 12, "heads": 12},
    "vit_large": {"dim": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"dim": 1280, "depth": 32, "heads": 16},
}


def vit_config(name: str, **overrides: Any) -> ViTConfig:
    """A preset with some fields replaced. UserError for an unknown name or field."""
    if name not in PRESETS:
        raise UserError("no such model", key="model.name", found=name, expected=sorted(PRESETS))
    try:
        return replace(ViTConfig(**PRESETS[name]), **overrides)
    except TypeError as error:
        raise UserError("unknown ViT field", key="model", found=sorted(overrides)) from error


class PatchEmbed(nn.Module):
    """Non-overlapping patches as one linear map; equal to a convolution whose stride is its kernel size.

    The weight `[dim, C·Πp]` is that convolution's, flattened: channel first, then the axes in order.
    """

    def __init__(self, patch_size: tuple[int, ...], in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * prod(patch_size), dim)

    def patches(self, x: Tensor) -> Tensor:
        """`[B, C, *spatial]` -> `[B, N, C·Πp]`, raster order."""
        B, C, *spatial = x.shape
        grid, axes = _grid(spatial, self.patch_size), len(self.patch_size)
        split = [n for g, p in zip(grid, self.patch_size, strict=True) for n in (g, p)]
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return x.reshape(B, C, *split).permute(order).reshape(B, prod(grid), -1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """`[B, C, *spatial]` -> `[B, N, dim]`, or `[B, K, dim]` of the patches `keep` `[B, K]`."""
        patches = self.patches(x)
        out: Tensor = self.proj(patches if keep is None else take(patches, keep))
        return out


class ViT(nn.Module):
    """Tokens of an image or volume: prefix (cls, registers; without positions) + patches, after a final LayerNorm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.num_prefix = int(c.cls_token) + c.registers
        self.patch_embed = PatchEmbed(c.patch_size, c.in_channels, c.dim)
        self.prefix_tokens = nn.Parameter(torch.empty(1, self.num_prefix, c.dim)) if self.num_prefix else None
        self.pos_embed = nn.Parameter(torch.empty(prod(c.grid), c.dim)) if c.positions == "learned" else None
        self.rotary = Rotary(c.dim // c.heads, len(c.patch_size), c.rope_theta) if c.positions == "rope" else None
        self.blocks = nn.ModuleList(
            Block(
                c.dim,
                c.heads,
                mlp_ratio=c.mlp_ratio,
                mlp=c.mlp,
                qkv_bias=c.qkv_bias,
                qk_norm=c.qk_norm,
                layer_scale=c.layer_scale,
                drop_path=c.drop_path * i / max(1, c.depth - 1),
            )
            for i in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.dim, eps=NORM_EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_transformer(self, list(self.blocks))
        for parameter in (self.prefix_tokens, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INIT_STD)

    def grid(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Tokens per axis for an input of this size. UserError if it is not a multiple of the patch size."""
        return _grid(spatial, self.config.patch_size)

    def forward(self, x: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """`[B, C, *spatial]` -> `[B, P+N, D]`, P = `num_prefix`.

        With `keep` `[B, K]` int64 (raster indices) the model sees these patches only: they are selected before the
        first block, keep their positions, and are returned in the given order, `[B, P+K, D]`.
        """
        tokens, angles = self._embed(x, keep)
        for block in self.blocks:
            tokens = self._run(block, tokens, angles)
        out: Tensor = self.norm(tokens)
        return out

    def intermediate(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens `[B, P+N, D]` after the given numbers of blocks (1…depth), in order, without the final norm."""
        assert layers and all(1 <= n <= self.config.depth for n in layers), layers
        tokens, angles = self._embed(x, None)
        seen = {}
        for number, block in enumerate(self.blocks[: max(layers)], 1):
            seen[number] = tokens = self._run(block, tokens, angles)
        return [seen[n] for n in layers]

    def forward_packed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Run batches of several sizes `[B_i, C, *spatial_i]` as one sequence; returns their tokens `[B_i, P+N_i, D]`.

        Equal to one forward pass per batch, at the cost of one: packed before the first block, unpacked after the last.
        Fastest if batches of equal size are adjacent.
        """
        embedded = [self._embed(x, None) for x in images]
        shapes = [t.shape for t, _ in embedded]
        lengths = [N for B, N, _ in shapes for _ in range(B)]
        tokens = torch.cat([t.flatten(0, 1) for t, _ in embedded]).unsqueeze(0)
        angles = [
            a.expand(shape[0], *a.shape).flatten(0, 1)
            for (_, a), shape in zip(embedded, shapes, strict=True)
            if a is not None
        ]
        packed_angles = torch.cat(angles) if angles else None
        for block in self.blocks:
            tokens = self._run(block, tokens, packed_angles, lengths)
        parts = self.norm(tokens)[0].split([B * N for B, N, _ in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _embed(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens `[B, P+K, D]` and, with rotary positions, their angles `[P+K, Dh/2]` or `[B, P+K, Dh/2]`."""
        grid = self.grid(x.shape[2:])
        tokens = self.patch_embed(x, keep)
        angles = None
        if self.rotary is not None:
            angles = self.rotary.angles(grid, self.config.grid, x.device)
            angles = angles if keep is None else angles[keep]
            angles = nn.functional.pad(angles, (0, 0, self.num_prefix, 0))
        else:
            table = self._table(grid, x.device)
            tokens = tokens + (table if keep is None else table[keep])
        if self.prefix_tokens is not None:
            tokens = torch.cat([self.prefix_tokens.expand(len(x), -1, -1).to(tokens.dtype), tokens], dim=1)
        return tokens, angles

    def _table(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        if self.pos_embed is not None:
            return resample_positions(self.pos_embed, self.config.grid, grid)
        return sincos_table(grid, self.config.dim, self.config.grid, device)

    def _run(
        self, block: nn.Module, tokens: Tensor, angles: Tensor | None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        if self.config.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, tokens, angles, lengths, use_reentrant=False)
        else:
            out = block(tokens, angles, lengths)
        return out


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `[B, K]` of `tokens` `[B, N, D]`, per sample: `[B, K, D]`."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _grid(spatial: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    if len(spatial) != len(patch_size) or any(s % p or s < p for s, p in zip(spatial, patch_size, strict=True)):
        expected = f"a multiple of the patch size {tuple(patch_size)}"
        raise UserError("the image size must be a multiple of the patch size", found=tuple(spatial), expected=expected)
    return tuple(s // p for s, p in zip(spatial, patch_size, strict=True))
