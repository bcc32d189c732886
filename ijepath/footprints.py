"""Turns target boxes into tokens: those that the predictor fills, and those that the context encoder may see.

Per target, C is its continuous extent, R every token that C touches (floor/ceil: 64, 72 or 81 tokens for 128 px in
patches of 16, as the corner is on the grid in both axes, one or none), T ⊆ R the tokens that the predictor fills.
**The context never holds a token of any R.** Where fewer tokens are wanted than there are, a seeded random subset is
dropped, so that no row or column of the image is seen less than another.

Counts depend on the *geometry and the config alone*, never on the other units of a batch: |T| is the smallest possible
R (that of an aligned box), and the context keeps what the largest possible R of all targets would leave. So a unit has
the same tokens in any batch, micro-batch and worker, all batches have one shape, and compiled graphs are built once.
Overlapping or aligned boxes leave more than that; the surplus is dropped at random. A unit that has fewer (only
possible when `mask.min_keep` or `mask.context_keep_tokens` exceeds what the worst case leaves) raises TooFewTokens, so
that other boxes are drawn or the unit is replaced; it is never filled with target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ijepath.config import MaskConfig
from ijepath.geometry import Boxes, Geometry
from pathray.errors import UserError

Ints = npt.NDArray[np.int64]


class TooFewTokens(Exception):
    """The context has fewer visible tokens than the run's fixed count."""

    def __init__(self, available: int, wanted: int) -> None:
        self.available, self.wanted = available, wanted
        super().__init__(f"{available} visible context tokens, {wanted} wanted")


@dataclass(frozen=True)
class Counts:
    """Tokens per context (`keep`) and per target (`predict`)."""

    keep: int
    predict: int


@dataclass(frozen=True)
class Footprints:
    """Tokens of one sample. `keep` [counts.keep] indexes the context's grid, `predict` [K, counts.predict] the
    predictor's grid (larger by the margin if there are outside targets), both in rising order; `spans` [K, 4] are the R
    as (column0, row0, column1, row1) in context tokens, ends exclusive."""

    keep: Ints
    predict: Ints
    spans: npt.NDArray[np.int32]


def token_counts(geometry: Geometry, mask: MaskConfig, aligned: bool) -> Counts:
    """The run's fixed counts for a geometry. UserError when the targets may leave no context at all."""
    height, width = (-(-extent // geometry.patch) for extent in geometry.footprint)
    most = [_most_tokens(extent, geometry.patch, aligned) + 2 * mask.guard_tokens for extent in geometry.footprint]
    inside = geometry.targets - geometry.outside
    visible = _block_side(geometry, mask) ** 2 if mask.context == "block" else geometry.grid**2
    hidden = inside * min(most[0], geometry.grid) * min(most[1], geometry.grid)
    keep = max(mask.min_keep, visible - hidden)
    if mask.context == "random":
        keep = max(mask.min_keep, int(mask.context_scale * (visible - hidden)))
    keep = mask.context_keep_tokens or keep
    predict = mask.predict_tokens or height * width
    if predict > height * width:
        expected = f"at most {height * width}, the tokens of an aligned target"
        raise UserError("a target has too few tokens", key="mask.predict_tokens", found=predict, expected=expected)
    least_hidden = height * width if inside else 0  # all inside targets on one another
    if keep > visible - least_hidden:
        key = "mask.context_keep_tokens" if mask.context_keep_tokens else "mask.min_keep"
        expected = f"at most {visible - least_hidden}, what one target leaves of {visible}"
        raise UserError("the targets leave too little context", key=key, found=keep, expected=expected)
    return Counts(keep, predict)


def token_spans(boxes: npt.ArrayLike, patch: int) -> npt.NDArray[np.int32]:
    """R of every box `[K, 4]`: (column0, row0, column1, row1) in tokens, ends exclusive; beyond the grid for outside
    targets."""
    corners = np.asarray(boxes, np.int64)
    low, high = corners[:, :2] // patch, -(-corners[:, 2:] // patch)
    return np.concatenate([low, high], axis=1).astype(np.int32)


def sample_footprints(
    generator: np.random.Generator, boxes: Boxes, geometry: Geometry, mask: MaskConfig, counts: Counts
) -> Footprints:
    """The tokens of one sample. Raises TooFewTokens when its context has fewer than `counts.keep` visible ones."""
    spans = token_spans(boxes, geometry.patch)
    visible = ~_hidden_tokens(spans, geometry.grid, mask.guard_tokens) & _context_mask(generator, geometry, mask)
    available = np.flatnonzero(visible)
    if available.size < counts.keep:
        raise TooFewTokens(available.size, counts.keep)
    keep = _subset(generator, available, counts.keep)
    predict = np.stack([_subset(generator, _span_tokens(s, geometry), counts.predict) for s in spans])
    return Footprints(keep, predict, spans)


def teacher_cells(boxes: Boxes, predict: Ints, geometry: Geometry) -> Ints:
    """For every teacher token `[K, gh·gw]` the index in T `[0, M)` of the context token under its centre, −1 where that
    token was dropped from T. It resamples predictions on T to the teacher's grid (nearest)."""
    rows, columns = geometry.teacher_grid
    offset = geometry.margin * geometry.patch
    y = (np.arange(rows) + 0.5) * geometry.footprint[0] / rows + offset
    x = (np.arange(columns) + 0.5) * geometry.footprint[1] / columns + offset
    row = ((boxes[:, 1, None] + y) // geometry.patch).astype(np.int64)
    column = ((boxes[:, 0, None] + x) // geometry.patch).astype(np.int64)
    token = (row[:, :, None] * geometry.predictor_grid + column[:, None, :]).reshape(len(boxes), -1)
    place = np.stack([np.searchsorted(p, t) for p, t in zip(predict, token, strict=True)])
    place = np.minimum(place, predict.shape[1] - 1)
    found = np.take_along_axis(predict, place, axis=1) == token
    return np.where(found, place, -1)


def to_predictor_grid(keep: Ints, geometry: Geometry) -> Ints:
    """Context token indices → indices in the predictor's grid."""
    row, column = np.divmod(keep, geometry.grid)
    return (row + geometry.margin) * geometry.predictor_grid + column + geometry.margin


def _most_tokens(extent: int, patch: int, aligned: bool) -> int:
    """Most tokens that a target of `extent` pixels touches along one axis."""
    return -(-extent // patch) if aligned else -(-(extent - 1) // patch) + 1


def _block_side(geometry: Geometry, mask: MaskConfig) -> int:
    return max(1, round(geometry.grid * float(np.sqrt(mask.context_scale))))


def _hidden_tokens(spans: npt.NDArray[np.int32], grid: int, guard: int) -> npt.NDArray[np.bool_]:
    """[grid²], True for the tokens of any R, and of the guard band around it."""
    hidden = np.zeros((grid, grid), bool)
    for column0, row0, column1, row1 in spans:
        if column0 >= grid or row0 >= grid or column1 <= 0 or row1 <= 0:
            continue  # an outside target touches no context token, and needs no guard
        hidden[max(0, row0 - guard) : row1 + guard, max(0, column0 - guard) : column1 + guard] = True
    return hidden.ravel()


def _context_mask(generator: np.random.Generator, geometry: Geometry, mask: MaskConfig) -> npt.NDArray[np.bool_]:
    """[grid²], True for the tokens that the context mask leaves, before the targets are removed."""
    offered = np.ones((geometry.grid, geometry.grid), bool)
    if mask.context == "block":
        side = _block_side(geometry, mask)
        row, column = generator.integers(geometry.grid - side + 1, size=2)
        offered[:] = False
        offered[row : row + side, column : column + side] = True
    return offered.ravel()


def _span_tokens(span: npt.NDArray[np.int32], geometry: Geometry) -> Ints:
    """The tokens of one R in the predictor's grid, in rising order."""
    column0, row0, column1, row1 = (int(v) + geometry.margin for v in span)
    rows = np.arange(row0, row1, dtype=np.int64)[:, None] * geometry.predictor_grid
    return (rows + np.arange(column0, column1, dtype=np.int64)).ravel()


def _subset(generator: np.random.Generator, tokens: Ints, count: int) -> Ints:
    """`count` of the tokens in rising order, every subset equally likely."""
    if tokens.size == count:
        return tokens
    return np.sort(generator.choice(tokens, count, replace=False))
