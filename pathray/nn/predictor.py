"""The narrow transformer that predicts hidden tokens from visible ones (I-JEPA, arXiv 2301.08243, section 3).

Its input is the context's tokens and one mask token per target position, all with positions; it never sees pixels. Not
here: which tokens are context or targets, the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathray.nn.blocks import INIT_STD, NORM_EPS, Block, init_transformer
from pathray.nn.positions import Rotary, sincos_table


class TokenPredictor(nn.Module):
    """(context tokens, their positions, target positions) -> predictions of the encoder's width.

    `axes` is 2 for images, 3 for volumes; `out_dim` defaults to `embed_dim`, the width of the context's tokens.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        axes: int = 2,
        out_dim: int | None = None,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "rope"] = "sincos",
        rope_theta: float = 100.0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.checkpointing = dim, checkpointing
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.rotary = Rotary(dim // heads, axes, rope_theta) if positions == "rope" else None
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, drop_path=drop_path * i / max(1, depth - 1)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.proj = nn.Linear(dim, embed_dim if out_dim is None else out_dim)
        init_transformer(self, list(self.blocks))
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(
        self,
        context: Tensor,
        context_index: Tensor,
        target_index: Tensor,
        grid: Sequence[int],
        *,
        visible_too: bool = False,
    ) -> Tensor:
        """context `[B, K, embed_dim]`, context_index `[B, K]`, target_index `[B, M]` -> `[B, M, out_dim]`, or, with
        `visible_too`, `[B, K + M, out_dim]` of the context's own positions and then the targets'.

        Indices are raster positions in `grid`, the predictor's own grid, which may be larger than the context's.
        Positions may repeat.
        """
        visible, wanted = self.embed(context), target_index.shape[1]
        masks = self.mask_token.to(visible.dtype).expand(len(context), wanted, -1)
        tokens = torch.cat([visible, masks], dim=1)
        places = torch.cat([context_index, target_index], dim=1)
        angles = None
        if self.rotary is not None:
            angles = self.rotary.angles(tuple(grid), device=context.device)[places]
        else:
            tokens = tokens + sincos_table(tuple(grid), self.dim, device=context.device)[places]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, angles, use_reentrant=False)
            else:
                tokens = block(tokens, angles)
        out: Tensor = self.proj(self.norm(tokens if visible_too else tokens[:, -wanted:]))
        return out
