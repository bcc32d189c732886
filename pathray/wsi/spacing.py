"""Chooses the slide level for a requested spacing. Spacings are µm per pixel (mpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_ENLARGEMENT = 2.0  # of the finest level, unless a key allows more


class Levelled(Protocol):
    @property
    def level_downsamples(self) -> tuple[float, ...]: ...


class Shaped(Levelled, Protocol):
    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]: ...


@dataclass(frozen=True)
class LevelChoice:
    """`scale` is requested / level mpp: above 1 the level's pixels are averaged, below 1 interpolated. `warned` is true
    if every level is coarser than requested by more than the tolerance."""

    level: int
    level_mpp: float
    scale: float
    warned: bool


def level_mpps(reader: Levelled, mpp0: float) -> tuple[float, ...]:
    """The spacing of each level, computed from that of level 0."""
    return tuple(mpp0 * down for down in reader.level_downsamples)


def axis_downsamples(reader: Shaped) -> tuple[tuple[float, float], ...]:
    """Downsample of each level in x and in y.

    Both axes share one number unless it misplaces the far edge by more than half a pixel of the level. This happens
    for strip-shaped slides, whose two sides are rounded very differently.
    """
    w0, h0 = reader.level_shapes[0]
    found = []
    for (w, h), down in zip(reader.level_shapes, reader.level_downsamples, strict=True):
        misplaced = max(abs(w0 / down - w), abs(h0 / down - h))
        found.append((down, down) if misplaced <= 0.5 else (w0 / w, h0 / h))
    return tuple(found)


def choose_level(level_mpps: Sequence[float], mpp: float, tolerance: float) -> LevelChoice:
    """The level to read for `mpp`: the nearest one if its relative error |level − mpp| / mpp is at most `tolerance`
    (the finer of two equally near ones); otherwise the coarsest level that is finer; otherwise the finest, with
    `warned` set."""
    assert len(level_mpps) > 0 and mpp > 0, (level_mpps, mpp)
    order = sorted(range(len(level_mpps)), key=lambda i: level_mpps[i])
    nearest = min(order, key=lambda i: abs(level_mpps[i] - mpp))
    if abs(level_mpps[nearest] - mpp) <= tolerance * mpp * (1 + 1e-12):
        return _choice(level_mpps, nearest, mpp, False)
    finer = [i for i in order if level_mpps[i] < mpp]
    if finer:
        return _choice(level_mpps, finer[-1], mpp, False)
    return _choice(level_mpps, order[0], mpp, True)


def enlargement(level_mpps: Sequence[float], mpp: float) -> float:
    """The factor by which the finest level must be enlarged to reach `mpp`; at most 1 if the slide is fine enough."""
    return min(level_mpps) / mpp


def too_coarse(level_mpps: Sequence[float], mpp: float, most: float) -> str:
    """The reason why a slide must not be read at `mpp` (its finest level would be enlarged more than `most` times), or
    ""."""
    times = enlargement(level_mpps, mpp)
    if times <= most * (1 + 1e-9):
        return ""
    return (
        f"its finest level has {min(level_mpps):.4g} µm per pixel: {mpp:.4g} would enlarge it {times:.1f} times, more "
        f"than max_enlargement={most:g}"
    )


def enlarged_note(choice: LevelChoice, of: str = "the tiles'") -> str:
    """A warning that pixels are enlarged, even slightly; "" if they are not. `of`: whose spacing was requested."""
    if not choice.warned:
        return ""
    return f"enlarged: the finest level has {choice.level_mpp:.3f} µm per pixel, {1 / choice.scale:.1f} times {of}"


def reused_note(level_mpps: Sequence[float], mpp: float, most: float) -> str:
    """A warning that finished work would be refused today, because it predates the rule or used a larger
    max_enlargement; "" if it would not."""
    coarse = too_coarse(level_mpps, mpp, most)
    return f"made before this rule or with another max_enlargement: {coarse}; delete it to exclude it" if coarse else ""


def _choice(level_mpps: Sequence[float], level: int, mpp: float, warned: bool) -> LevelChoice:
    return LevelChoice(level, float(level_mpps[level]), mpp / float(level_mpps[level]), warned)
