"""Heads on top of an encoder: projection MLPs and linear heads. Not here: losses, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pathray.nn.blocks import INIT_STD, NORM_EPS


class _OverFeatures(nn.BatchNorm1d):
    """Batch norm over every axis but the last, `[…, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).reshape(x.shape)


class ProjectionHead(nn.Module):
    """`[…, dims[0]]` -> `[…, dims[-1]]`: linear, norm and activation per layer; the last layer is linear only.

    With ``norm="batch"`` the linears before a norm have no bias. ADIOS-TME: dims (d, 2048, 2048, 256), no norm, GELU.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        norm: Literal["none", "batch", "layer"] = "none",
        activation: Literal["gelu", "relu"] = "gelu",
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        assert len(dims) >= 2, dims
        layers: list[nn.Module] = []
        for before, after in zip(dims[:-2], dims[1:-1], strict=True):
            layers.append(nn.Linear(before, after, bias=norm != "batch"))
            if norm == "batch":
                layers.append(_OverFeatures(after))
            elif norm == "layer":
                layers.append(nn.LayerNorm(after, eps=NORM_EPS))
            layers.append(nn.GELU() if activation == "gelu" else nn.ReLU())
        layers.append(nn.Linear(dims[-2], dims[-1], bias=last_bias))
        self.layers = nn.Sequential(*layers)
        _init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class LinearHead(nn.Module):
    """`[…, dim]` -> `[…, outputs]`."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        _init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def _init_linears(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=INIT_STD)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
