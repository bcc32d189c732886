"""The kinds of encoders: what each takes and gives, by its description. The one place where features tell them apart.

A ViT gives tokens that are pooled here; one with attention pooling gives its own vector besides; a program gives
vectors only. Not here: how they are stored (pathray.store.artifact), preprocessing (pathray.features.encoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathray.store.artifact import POOLED, PROGRAM

if TYPE_CHECKING:
    from torch import Tensor, nn

AUTO = "auto"
POOLINGS = ("mean", "cls", "cls+mean")  # of a ViT's tokens
OWN_POOLINGS = {POOLED: "attention", PROGRAM: "output"}  # by architecture


@dataclass(frozen=True)
class Kind:
    """`widths`: the length of a feature vector by pooling; `own`: the pooling that `auto` stands for; `vit`: the fields
    of the ViT, None for a program."""

    widths: Mapping[str, int]
    own: str
    vit: Mapping[str, Any] | None

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Kind:
        own = description["preprocessing"].get("pooling")
        if "vit" in description:
            return cls(_widths(description["vit"]), own or "mean", description["vit"])
        network, own = description["network"], OWN_POOLINGS[description["architecture"]]
        if "vit" not in network:
            return cls({own: int(network["dim"])}, own, None)
        return cls(_widths(network["vit"]) | {own: int(network["pool"]["dim"])}, own, network["vit"])

    def pooling(self, asked: str) -> str:
        """The pooling that is meant: `auto` is the encoder's own."""
        return self.own if asked == AUTO else asked


def _widths(vit: Mapping[str, Any]) -> dict[str, int]:
    dim = int(vit["dim"])
    return {"mean": dim} | ({"cls": dim, "cls+mean": 2 * dim} if vit["cls_token"] else {})


def pool(network: nn.Module, out: Tensor, pooling: str) -> Tensor:
    """What a network gave, as features `[B, E]`: tokens `[B, P+N, D]` pooled, without registers; for ``cls+mean`` the
    class token comes first. A program's vectors stay as they are."""
    import torch

    if pooling == OWN_POOLINGS[PROGRAM]:
        return out
    if pooling == OWN_POOLINGS[POOLED]:
        attended: Tensor = network.pool(out)  # type: ignore[operator]
        return attended
    patches = out[:, int(network.num_prefix) :].mean(dim=1)  # type: ignore[arg-type]
    if pooling == "mean":
        return patches
    return out[:, 0] if pooling == "cls" else torch.cat([out[:, 0], patches], dim=1)
