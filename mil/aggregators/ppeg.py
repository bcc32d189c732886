"""The pyramid position encoding of TransMIL (Shao et al. 2021, arXiv 2106.00908, section 3.3): instances of a bag on a
square in their order, three depthwise convolutions over it. Not here: the transformer around it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathray.nn.tracing import is_traced

SIDE = 7  # of the largest kernel


class PPEG(nn.Module):
    """x + conv₇(x) + conv₅(x) + conv₃(x) on the square: `[B, S², E]` → `[B, S², E]`.

    Convolutions add up, so that they are computed as one with the kernel 1 + k₇ + k₅ + k₃.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj, self.proj1, self.proj2 = (
            nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim) for side in (SIDE, 5, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        assert side * side == x.shape[1], x.shape
        return self._convolve(x, side)

    def masked(self, x: Tensor, sides: Tensor) -> Tensor:
        """A square of `sides` `[B]` per bag: the first `sides`² of x `[B, L, E]` are cells, the rest must be 0.

        The same result as `forward` per bag, by shapes that depend on L alone. Traced, a shape may not even depend on
        √L, so that the convolution is a sum over the kernel's 49 shifts there.
        """
        return self._shifted(x, sides) if is_traced() else self._on_common_square(x, sides)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The kernel of the sum `[E, 1, 7, 7]` and its bias `[E]`."""
        weight = self.proj.weight + F.pad(self.proj1.weight, (1,) * 4) + F.pad(self.proj2.weight, (2,) * 4)
        centre = torch.zeros(SIDE, SIDE, dtype=weight.dtype, device=weight.device)
        centre[SIDE // 2, SIDE // 2] = 1.0
        biases = [layer.bias for layer in (self.proj, self.proj1, self.proj2)]
        assert all(bias is not None for bias in biases)
        return weight + centre, torch.stack([bias for bias in biases if bias is not None]).sum(dim=0)

    def _convolve(self, x: Tensor, side: int) -> Tensor:
        """Tokens are a map in the memory format `channels_last` already: no copy."""
        weight, bias = self.kernel()
        grid = x.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        out = F.conv2d(grid, weight, bias, padding=SIDE // 2, groups=x.shape[2])
        return out.permute(0, 2, 3, 1).flatten(1, 2)

    def _on_common_square(self, x: Tensor, sides: Tensor) -> Tensor:
        """Every bag's square is the upper left corner of one that is large enough for L."""
        L = x.shape[1]
        side = math.isqrt(L - 1) + 1
        cell = torch.arange(side * side, device=x.device)
        row, column, s = cell // side, cell % side, sides[:, None]
        outside = (row >= s) | (column >= s)
        grid = _gather(x, (row * s + column).clamp(max=L - 1)).masked_fill(outside[..., None], 0.0)
        token = torch.arange(L, device=x.device)
        back = (token // s * side + token % s).clamp(max=side * side - 1)
        return _gather(self._convolve(grid, side), back).masked_fill((token >= s * s)[..., None], 0.0)

    def _shifted(self, x: Tensor, sides: Tensor) -> Tensor:
        weight, bias = self.kernel()
        s, token = sides[:, None], torch.arange(x.shape[1], device=x.device)
        row, column = token // s, token % s
        out = bias.expand_as(x)
        for i in range(SIDE):
            for j in range(SIDE):
                down, right = row + i - SIDE // 2, column + j - SIDE // 2
                inside = (down >= 0) & (down < s) & (right >= 0) & (right < s)
                source = (down * s + right).clamp(min=0, max=x.shape[1] - 1)
                out = out + _gather(x, source).masked_fill(~inside[..., None], 0.0) * weight[:, 0, i, j]
        return out.masked_fill((token >= s * s)[..., None], 0.0)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `[B, M]` of x `[B, L, E]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
