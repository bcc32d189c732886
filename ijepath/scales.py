"""Which spacings and target shapes a sample has: the profile's own, or those of the configured options.

What changes array shapes is chosen per **step** (position // global batch), so that a batch has one shape, the same on
every worker; what does not (the absolute scale) is chosen per unit among those that its slide has.

- cross: context at context_mpp, targets at target_mpp (the profile).
- same: both at target_mpp, the context's field of view shrunk accordingly.
- reverse: fine context, coarse targets.
- target shapes: a fixed list of sizes and aspects, one per step for all of its targets (as in I-JEPA,
  arXiv 2301.08243, section 3, where a batch shares its block size).

The geometry in context pixels stays the profile's throughout, and so does the number of context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ijepath.config import RunConfig, ScalesConfig
from ijepath.geometry import Geometry, edge_px, profile_geometry
from ijepath.profile import Profile, size_px
from pathray.data.order import rng


@dataclass(frozen=True)
class Kind:
    """A geometry that a step's samples can have, and its share of the steps."""

    name: str
    geometry: Geometry
    share: float


def kinds(config: RunConfig) -> tuple[Kind, ...]:
    """Every kind that occurs in a run, in fixed order; shares add up to 1."""
    base = profile_geometry(config.data, outside=config.mask.outside_targets, ring_um=config.mask.outside_ring_um)
    scales = config.scales
    cross = 1.0 - scales.same_resolution_ratio - scales.reverse_ratio
    directions = (("cross", cross), ("same", scales.same_resolution_ratio), ("reverse", scales.reverse_ratio))
    footprints = _footprints(base, scales, config.data.seed)
    if base.outside:  # one predictor grid for all target shapes
        base = replace(base, reach=base.ring + max(max(f) for f in footprints))
    return tuple(
        Kind(f"{name}_{h}x{w}", _reshape(base, config.data, name, (h, w)), share / len(footprints))
        for name, share in directions
        if share > 1e-9
        for h, w in footprints
    )


def kind_of_step(choices: Sequence[Kind], seed: int, step: int) -> Kind:
    """The kind of one step, a function of (seed, step) alone."""
    if len(choices) == 1:
        return choices[0]
    draw = rng(seed, "kind", step).random()
    edges = np.cumsum([k.share for k in choices])
    return choices[min(int(np.searchsorted(edges, draw, side="right")), len(choices) - 1)]


def available_factors(factors: Sequence[float], geometry: Geometry, finest_mpp: float, tolerance: float) -> list[float]:
    """The factors for which a slide has both spacings: none finer than its finest level, within the tolerance."""
    need = min(geometry.context_mpp, geometry.target_mpp)
    return [f for f in factors if need * f >= finest_mpp * (1 - tolerance)]


def _footprints(base: Geometry, scales: ScalesConfig, seed: int) -> list[tuple[int, int]]:
    """Target shapes in context pixels, whole patches, drawn once per run; the profile's own if nothing varies."""
    if scales.target_scale == [1.0, 1.0] and scales.target_aspect == [1.0, 1.0]:
        return [base.footprint]
    shapes = []
    for i in range(scales.target_shapes):
        generator = rng(seed, "target_shape", i)
        area = generator.uniform(scales.target_scale[0], scales.target_scale[1]) * base.footprint[0] * base.footprint[1]
        aspect = np.exp(generator.uniform(np.log(scales.target_aspect[0]), np.log(scales.target_aspect[1])))
        shapes.append((_snap(np.sqrt(area * aspect), base), _snap(np.sqrt(area / aspect), base)))
    return shapes


def _snap(extent: float, base: Geometry) -> int:
    return min(size_px(extent, 1.0, base.patch), base.context_px)


def _reshape(base: Geometry, profile: Profile, direction: str, footprint: tuple[int, int]) -> Geometry:
    """`base` with another direction and target shape. A crop is snapped to the patch, which sets its spacing."""
    if direction == "cross" and footprint == base.footprint:
        return base
    fine, coarse = base.target_mpp, base.context_mpp
    context, target = {"cross": (coarse, fine), "same": (fine, fine), "reverse": (fine, coarse)}[direction]
    crop = tuple(size_px(extent * context, target, base.patch) for extent in footprint)
    edges = tuple(edge_px(profile.target_margin_um, base.context_mpp, extent) for extent in footprint)
    return replace(
        base,
        footprint=footprint,
        crop=(crop[0], crop[1]),
        edge=(edges[0], edges[1]),
        context_mpp=context,
        target_mpp=target,
    )
