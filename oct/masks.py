"""Which tokens of a volume are hidden and which the encoder sees: drawn with NumPy, in fixed numbers.

Every mask has exactly as many context and target tokens as any other of its kind, and both together are the grid. Every
place is hidden as often as any other: blocks wrap around the grid's edges, and all else is relative to a block's
corner, so the draws do not know where the grid begins. (Cutting masks to the first K tokens in raster order, as
V-JEPA's published collator does, starves the last slices.) Not here: what is made of the tokens (oct.model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oct.config import MaskConfig, RunConfig
from pathray.errors import UserError

Ints = npt.NDArray[np.int32]
Draw = Callable[[np.random.Generator], npt.NDArray[np.int64]]  # the next block's tokens, in the block's raster order


@dataclass(frozen=True)
class MaskSampler:
    """Draws the masks of a volume with `grid` tokens per axis. `hidden`: how many tokens of each mask are targets."""

    grid: tuple[int, int, int]
    config: MaskConfig
    hidden: tuple[int, ...]

    @classmethod
    def of(cls, config: RunConfig) -> MaskSampler:
        """UserError when the masks would hide all tokens or none."""
        grid, mask = config.tokens, config.mask
        if mask.kind == "vjepa":
            plane = math.prod(grid[1:])
            counts = tuple(round(share * plane) for share in _covered(mask))
            most, key = plane, "mask.short_scale"
        else:
            counts, most, key = (round(mask.ratio * math.prod(grid)),), math.prod(grid), "mask.ratio"
        if not all(0 < count < most for count in counts):
            found, expected = f"{list(counts)} of {most} tokens", "some hidden and some visible"
            raise UserError("the masks leave nothing to see or to predict", key=key, found=found, expected=expected)
        depth = grid[0] if mask.kind == "vjepa" else 1
        return cls(grid, mask, tuple(depth * count for count in counts))

    @property
    def masks(self) -> int:
        """Masks per volume, each with a pass of encoder and predictor."""
        return len(self.hidden)

    @property
    def visible(self) -> tuple[int, ...]:
        """How many tokens of each mask are context."""
        return tuple(math.prod(self.grid) - count for count in self.hidden)

    def sample(self, rng: np.random.Generator) -> dict[str, Ints]:
        """`context_<i>` and `target_<i>` of each mask i: token numbers in raster order, rising, of fixed lengths."""
        out: dict[str, Ints] = {}
        for i in range(self.masks):
            target = np.zeros(math.prod(self.grid), bool)
            target[self._targets(rng, i)] = True
            out[f"context_{i}"] = np.flatnonzero(~target).astype(np.int32)
            out[f"target_{i}"] = np.flatnonzero(target).astype(np.int32)
        return out

    def _targets(self, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
        count, config = self.hidden[number], self.config
        if config.kind == "random":
            return rng.permutation(math.prod(self.grid))[:count]
        if config.kind == "block":
            return fill(rng, count, lambda g: draw_block(g, self.grid, config.block_extent))
        plane, scale = self.grid[1:], (config.short_scale, config.long_scale)[number]
        columns = fill(rng, count // self.grid[0], lambda g: draw_rectangle(g, plane, scale, config.aspect))
        slices = np.arange(self.grid[0])[:, None] * math.prod(plane)
        return (slices + columns).ravel()


def fill(rng: np.random.Generator, count: int, draw: Draw) -> npt.NDArray[np.int64]:
    """`count` different tokens out of as many blocks as it takes; of the last, those that come first in its own raster
    order."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        new = [token for token in draw(rng).tolist() if token not in chosen]
        chosen |= dict.fromkeys(new[: count - len(chosen)])
    return np.fromiter(chosen, np.int64, count)


def draw_block(rng: np.random.Generator, grid: Sequence[int], extent: Sequence[float]) -> npt.NDArray[np.int64]:
    """A block whose length along each axis is a share of the axis in `extent` (low, high), anywhere."""
    low, high = extent
    sides = [max(1, round(n * rng.uniform(low, high))) for n in grid]
    return _wrapped(rng, grid, sides)


def draw_rectangle(
    rng: np.random.Generator, plane: Sequence[int], scale: float, aspect: Sequence[float]
) -> npt.NDArray[np.int64]:
    """A rectangle of about `scale` of the plane's tokens, height / width log-uniform in `aspect`, anywhere."""
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    area = scale * math.prod(plane)
    sides = [round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))]
    return _wrapped(rng, plane, [min(max(side, 1), n) for side, n in zip(sides, plane, strict=True)])


def _wrapped(rng: np.random.Generator, grid: Sequence[int], sides: Sequence[int]) -> npt.NDArray[np.int64]:
    """Tokens of a block with a corner anywhere, in the block's raster order; beyond the grid's end it
    continues at the start."""
    axes = [(rng.integers(n) + np.arange(side)) % n for n, side in zip(grid, sides, strict=True)]
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), tuple(grid)).ravel()


def _covered(mask: MaskConfig) -> tuple[float, float]:
    """The share of a B-scan that each mask of vjepa hides: what its blocks cover on average."""
    blocks = ((mask.short_blocks, mask.short_scale), (mask.long_blocks, mask.long_scale))
    short, long = (1 - (1 - scale) ** count for count, scale in blocks)
    return short, long
