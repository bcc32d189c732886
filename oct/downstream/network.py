"""Encoder and head: volume → class scores or a standardised number. Also the factors of layer-wise learning rates.

Not here: losses (oct.downstream.attentive.head_loss), inputs (oct.downstream.preprocess).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oct.downstream.attentive import AttentiveHead
from oct.downstream.config import DownstreamConfig
from oct.downstream.preprocess import Preprocessing, load_encoder, patch_tokens
from pathray.nn.heads import LinearHead
from pathray.nn.vit import ViT


class VolumeNet(nn.Module):
    """`[B, 1, D, H, W]` → `[B, outputs]`: a linear layer on the mean token, or an attentive head on all of them."""

    def __init__(self, encoder: ViT, outputs: int, head: str, heads: int = 0) -> None:
        super().__init__()
        self.encoder, self.kind = encoder, head
        dim = encoder.config.dim
        self.head: nn.Module = LinearHead(dim, outputs) if head == "mean" else AttentiveHead(dim, outputs, heads)

    def forward(self, volumes: Tensor) -> Tensor:
        tokens = patch_tokens(self.encoder, volumes)
        out: Tensor = self.head(tokens.mean(dim=1) if self.kind == "mean" else tokens)
        return out


def build_net(config: DownstreamConfig, classes: int) -> tuple[VolumeNet, Preprocessing]:
    """The network of a config as it starts, from the seed alone, and the inputs of its encoder. torch's global random
    state does not change."""
    model, seed = config.model, config.data.seed
    encoder, given = load_encoder(
        str(model.encoder), model.weights, seed, drop_path=model.drop_path, checkpointing=model.checkpointing
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = VolumeNet(encoder, classes or 1, model.head, model.heads)
    return net.train(), given


def layer_rates(depth: int, decay: float, prefix: str = "net.encoder.") -> tuple[tuple[str, float], ...]:
    """(prefix, factor) for an encoder of `depth` blocks: decay^(depth − i) for block i = 0 …, one more power for what
    is below the first; head and final norm have 1. As in BEiT (arXiv 2106.08254)."""
    if decay == 1:
        return ()
    blocks = [(f"{prefix}blocks.{i}.", decay ** (depth - i)) for i in range(depth)]
    below = [(f"{prefix}{name}", decay ** (depth + 1)) for name in ("patch_embed.", "pos_embed", "prefix_tokens")]
    return (*blocks, *below)
