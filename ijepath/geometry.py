"""The targets in a context: pixel sizes of one sample, and how its target boxes are drawn.

All lengths are context pixels unless named otherwise; a box is (x0, y0, x1, y1), ends exclusive, and its corner is a
whole pixel. Everything is drawn from the generator passed in, which belongs to one unit and does not depend on a pass
counter, rank or worker. Not here: tokens (ijepath.footprints) and pixels (ijepath.data).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ijepath.config import DataConfig
from ijepath.profile import Profile
from pathray.errors import UserError

CANDIDATES = 64  # positions drawn per target and try
TRIES = 4  # per tissue threshold

Boxes = npt.NDArray[np.int32]
TissueShare = Callable[[Boxes], npt.NDArray[np.float64]]


class NoBoxes(Exception):
    """No legal set of boxes was found. `reason` is ``tissue`` or ``overlap``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Geometry:
    """Pixel sizes of one sample. Equal geometries give arrays of equal shapes, whatever the slide and its spacings.

    `footprint` (Tc) is a target's extent in context pixels, `crop` its extent as the teacher sees it, both
    (height, width); `edge` (e) keeps boxes off the context's border. The last `outside` targets are in a ring around
    the context, at most `ring` pixels away from it; `reach` pixels around the context cover all of them.
    """

    context_px: int
    patch: int
    targets: int
    footprint: tuple[int, int]
    crop: tuple[int, int]
    edge: tuple[int, int]
    context_mpp: float
    target_mpp: float
    outside: int = 0
    ring: int = 0
    reach: int = 0

    @property
    def grid(self) -> int:
        """Side of the context in tokens."""
        return self.context_px // self.patch

    @property
    def margin(self) -> int:
        """Tokens by which the predictor's grid exceeds the context's on every side, so that outside targets fit."""
        return -(-self.reach // self.patch)

    @property
    def predictor_grid(self) -> int:
        return self.grid + 2 * self.margin

    @property
    def teacher_grid(self) -> tuple[int, int]:
        return self.crop[0] // self.patch, self.crop[1] // self.patch


def profile_geometry(profile: Profile, *, outside: int = 0, ring_um: float = 0.0) -> Geometry:
    """The geometry of a profile: one square target size at the profile's two spacings."""
    tc, e = profile.target_footprint_px, profile.target_edge_px
    ring = round(ring_um / profile.context_effective_mpp) if outside else 0
    return Geometry(
        context_px=profile.context_px,
        patch=profile.patch_size,
        targets=profile.targets_per_context,
        footprint=(tc, tc),
        crop=(profile.target_px, profile.target_px),
        edge=(e, e),
        context_mpp=profile.context_effective_mpp,
        target_mpp=profile.target_effective_mpp,
        outside=outside,
        ring=ring,
        reach=ring + tc if outside else 0,
    )


def edge_px(margin_um: float, mpp: float, extent: int) -> int:
    """e = max(0, round(margin/mpp) − T//2): a target's centre stays `margin_um` off the border, its edge inside."""
    return max(0, round(margin_um / mpp) - extent // 2)


@dataclass(frozen=True)
class BoxRules:
    """What makes a set of boxes legal. Overlaps are shares of one target's area, tissue shares of each box's."""

    aligned: bool = False
    max_overlap: float = 0.25
    min_tissue: float = 0.25
    policy: str = "skip_anchor"
    tissue_floor: float = 0.10
    tissue_step: float = 0.05

    @classmethod
    def of(cls, data: DataConfig) -> BoxRules:
        return cls(
            aligned=data.align_targets_to_patch_grid,
            max_overlap=data.max_target_overlap,
            min_tissue=data.min_target_tissue_fraction,
            policy=data.insufficient_target_policy,
            tissue_floor=data.target_tissue_floor,
            tissue_step=data.target_tissue_step,
        )

    def thresholds(self) -> Iterator[float]:
        """Tissue shares to require, in the order of trying."""
        yield self.min_tissue
        if self.policy == "lower_threshold":
            steps = int(np.ceil((self.min_tissue - self.tissue_floor) / self.tissue_step - 1e-9))
            for i in range(1, steps + 1):
                yield max(self.tissue_floor, self.min_tissue - i * self.tissue_step)


def starts(context_px: int, extent: int, edge: int, patch: int, aligned: bool) -> npt.NDArray[np.int64]:
    """All legal first pixels of a target along one axis: e … ctx − T − e **inclusive**, or the multiples of the patch
    among them. UserError when there is none.

    >>> starts(64, 32, 0, 16, True).tolist()
    [0, 16, 32]
    """
    step = patch if aligned else 1
    first = -(-edge // step) * step
    positions = np.arange(first, context_px - extent - edge + 1, step, dtype=np.int64)
    if positions.size == 0:
        raise UserError(
            "no room for a target in the context",
            key="data.target_fov_um",
            found=f"target {extent} px, edge {edge} px" + (", on the patch grid" if aligned else ""),
            expected=f"to fit into {context_px} px",
        )
    return positions


def draw_boxes(
    generator: np.random.Generator, geometry: Geometry, rules: BoxRules, tissue: TissueShare | None = None
) -> tuple[Boxes, float]:
    """One legal set of boxes `[K, 4]` int32, and the tissue share that was required of each.

    Corners are uniform over the legal positions, given that pairwise overlaps stay within the rules and every box has
    enough tissue (`tissue` maps boxes `[N, 4]` to shares `[N]`; None: not required). Raises NoBoxes.
    """
    reason = "overlap"
    for threshold in rules.thresholds() if tissue is not None else (0.0,):
        for _ in range(TRIES):
            candidates = _candidates(generator, geometry, rules.aligned)
            enough = np.ones(candidates.shape[:2], bool)
            if tissue is not None:
                enough = (tissue(candidates.reshape(-1, 4)) >= threshold - 1e-9).reshape(enough.shape)
            chosen = _first_legal(candidates, enough, rules.max_overlap * geometry.footprint[0] * geometry.footprint[1])
            if chosen is not None:
                return chosen, threshold
            reason = "overlap" if enough.any(axis=1).all() else "tissue"
    raise NoBoxes(reason)


def overlap_areas(box: npt.ArrayLike, others: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Common area `[N, M]` in pixels² of boxes `[N, 4]` and `[M, 4]`."""
    a, b = np.asarray(box, np.int64)[:, None], np.asarray(others, np.int64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    sides = np.maximum(high - low, 0)
    area: npt.NDArray[np.int64] = sides[..., 0] * sides[..., 1]
    return area


def _candidates(generator: np.random.Generator, geometry: Geometry, aligned: bool) -> Boxes:
    """Uniform legal corners, as boxes `[K, CANDIDATES, 4]`; those of the outside targets come last."""
    height, width = geometry.footprint
    inside = geometry.targets - geometry.outside
    xs = starts(geometry.context_px, width, geometry.edge[1], geometry.patch, aligned)
    ys = starts(geometry.context_px, height, geometry.edge[0], geometry.patch, aligned)
    x = xs[generator.integers(xs.size, size=(inside, CANDIDATES))]
    y = ys[generator.integers(ys.size, size=(inside, CANDIDATES))]
    corners = np.stack([x, y], axis=-1)
    if geometry.outside:
        ring = _ring_corners(generator, geometry, aligned)
        corners = np.concatenate([corners, ring])
    return np.concatenate([corners, corners + np.array([width, height])], axis=-1).astype(np.int32)


def _ring_corners(generator: np.random.Generator, geometry: Geometry, aligned: bool) -> npt.NDArray[np.int64]:
    """Corners [outside, CANDIDATES, 2] beyond one of the four sides: a uniform side, a gap ≤ ring, a uniform offset."""
    size = (geometry.outside, CANDIDATES)
    step = geometry.patch if aligned else 1
    height, width = geometry.footprint
    side = generator.integers(4, size=size)
    gap = generator.integers(geometry.ring // step + 1, size=size) * step
    along = generator.random(size=size)
    corners = np.empty((*size, 2), np.int64)
    for axis, extent in ((0, width), (1, height)):  # sides 0 and 1: left and right; 2 and 3: above and below
        low, high = -(extent // step) * step, geometry.context_px
        slide = low + np.floor(along * ((high - low) // step + 1)).astype(np.int64) * step
        before = -(-(extent + gap) // step) * -step
        across = np.where(side % 2 == 0, before, geometry.context_px + gap)
        corners[..., axis] = np.where(side // 2 == axis, across, slide)
    return corners


def _first_legal(candidates: Boxes, enough: npt.NDArray[np.bool_], max_area: float) -> Boxes | None:
    """The first candidate of each target with enough tissue and little overlap with those chosen before it."""
    chosen = np.empty((0, 4), np.int32)
    for boxes, ok in zip(candidates, enough, strict=True):
        legal = ok & (overlap_areas(boxes, chosen) <= max_area + 1e-9).all(axis=1)
        if not legal.any():
            return None
        chosen = np.concatenate([chosen, boxes[np.argmax(legal)][None]])
    return chosen
