"""The geometry of an I-JEPATH sample: fields of view in micrometres, turned into pixels. Pure arithmetic.

Not here: where anchors are on a slide (ijepath.indexing.anchors), and targets in a context (ijepath.geometry).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from typing import Any

from pathray.errors import UserError

# Changing one of these changes the anchors or their catalog columns; the others may change without a rebuild.
CATALOG_FIELDS = (
    "context_mpp",
    "target_mpp",
    "context_fov_um",
    "target_fov_um",
    "min_tissue_fraction",
    "anchor_stride_fraction",
    "spacing_tolerance",
    "patch_size",
)

GEOMETRY = (
    "context_mpp",
    "target_mpp",
    "context_fov_um",
    "target_fov_um",
    "targets_per_context",
)  # of a profile's name


@dataclass
class Profile:
    """Sizes and spacings of context and targets. Spacings in µm per pixel, fields of view and margins in µm."""

    profile_id: str = ""  # "": named after the geometry
    context_mpp: float = 1.0
    target_mpp: float = 0.5
    context_fov_um: float = 512.0
    target_fov_um: float = 128.0
    targets_per_context: int = 4
    min_tissue_fraction: float = 0.2  # of the context
    anchor_stride_fraction: float = 0.5  # of the context's side
    target_margin_um: float = 16.0  # between a target's centre and the context's border; no effect below half a target
    spacing_tolerance: float = 0.05  # a pyramid level this close to the wanted spacing is read as it is
    seed: int = 0
    patch_size: int = 16

    @property
    def name(self) -> str:
        """`profile_id`, or if empty a name made of the geometry: ``ctx1p0_tgt0p5_fov512um_k4``."""
        if self.profile_id:
            return self.profile_id
        context, target = (f"{float(m)!r}".replace(".", "p") for m in (self.context_mpp, self.target_mpp))
        return f"ctx{context}_tgt{target}_fov{self.context_fov_um:g}um_k{self.targets_per_context}"

    @property
    def context_px(self) -> int:
        """Side of the context image in pixels, a multiple of the patch."""
        return size_px(self.context_fov_um, self.context_mpp, self.patch_size)

    @property
    def target_px(self) -> int:
        """Side of a target crop in pixels (at the target's spacing), a multiple of the patch."""
        return size_px(self.target_fov_um, self.target_mpp, self.patch_size)

    @property
    def context_effective_mpp(self) -> float:
        """µm per context pixel after its side was snapped to the patch: fov / px."""
        return self.context_fov_um / self.context_px

    @property
    def target_effective_mpp(self) -> float:
        return self.target_fov_um / self.target_px

    @property
    def target_footprint_px(self) -> int:
        """Tc: side of a target's field of view in context pixels."""
        return round(self.target_fov_um / self.context_effective_mpp)

    @property
    def target_edge_px(self) -> int:
        """e: target boxes start in [e, ctx − Tc − e]. A margin below half the target has no effect (e = 0)."""
        margin = round(self.target_margin_um / self.context_effective_mpp)
        return max(0, margin - self.target_footprint_px // 2)

    def context_size_level0(self, mpp0: float) -> int:
        """Side of the context's region in level-0 pixels of a slide with spacing `mpp0`."""
        return size_level0(self.context_px, self.context_effective_mpp, mpp0)

    def target_size_level0(self, mpp0: float) -> int:
        return size_level0(self.target_px, self.target_effective_mpp, mpp0)

    def stride_level0(self, mpp0: float) -> int:
        """Distance of neighbouring anchors in level-0 pixels, at least 1."""
        return max(1, round(self.anchor_stride_fraction * self.context_fov_um / mpp0))

    def validate(self, file: object | None = None) -> Profile:
        """This profile. UserError naming the first invalid key."""
        for key in ("context_mpp", "target_mpp", "context_fov_um", "target_fov_um", "anchor_stride_fraction"):
            _require(math.isfinite(getattr(self, key)) and getattr(self, key) > 0, self, key, "a number > 0", file)
        for key in ("targets_per_context", "patch_size"):
            _require(getattr(self, key) >= 1, self, key, "at least 1", file)
        for key in ("target_margin_um", "spacing_tolerance"):
            _require(math.isfinite(getattr(self, key)) and getattr(self, key) >= 0, self, key, "a number >= 0", file)
        _require(0 <= self.min_tissue_fraction <= 1, self, "min_tissue_fraction", "a fraction between 0 and 1", file)
        _require(self.spacing_tolerance < 1, self, "spacing_tolerance", "a fraction below 1", file)
        room = self.context_px - self.target_footprint_px - 2 * self.target_edge_px
        if self.target_footprint_px < 1 or room < 0:
            raise UserError(
                "the targets of this profile do not fit into its context",
                file=file,
                key="target_fov_um",
                found=f"footprint {self.target_footprint_px} px + 2 x edge {self.target_edge_px} px",
                expected=f"at most the context's {self.context_px} px",
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """The profile's own fields (not those of a subclass), under its resolved name."""
        return {f.name: getattr(self, f.name) for f in fields(Profile)} | {"profile_id": self.name}

    def catalog_hash(self) -> str:
        """Digest of what an anchor catalog depends on; equal digests mean equal anchors on equal slides."""
        values = {k: v for k, v in self.as_dict().items() if k in CATALOG_FIELDS}
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def name_by_geometry(profile: Profile, alone: Any) -> None:
    """Name `profile` after its geometry if that differs from the profile's file, `alone`: a record must not name a
    profile that was not used. An id that another layer set stays."""
    changed = any(getattr(profile, key) != getattr(alone, key) for key in GEOMETRY)
    if not changed or not profile.profile_id or profile.profile_id != alone.profile_id:
        return
    profile.profile_id = ""
    own_target = "" if 4 * profile.target_fov_um == profile.context_fov_um else f"_t{profile.target_fov_um:g}um"
    profile.profile_id = profile.name + own_target


def size_px(fov_um: float, mpp: float, patch_size: int) -> int:
    """`fov_um / mpp` pixels, snapped to the nearest multiple of the patch: ties down, at least one patch.

    >>> size_px(512, 1.0, 16), size_px(120, 1.0, 16), size_px(3, 1.0, 16)
    (512, 112, 16)
    """
    patches = fov_um / mpp / patch_size
    return patch_size * max(1, math.ceil(patches - 0.5 - 1e-9))


def size_level0(px: int, mpp: float, mpp0: float) -> int:
    """Level-0 pixels that `px` pixels at spacing `mpp` cover: the rule of pathray.wsi.regions, halves up."""
    return math.floor(px * (mpp / mpp0) + 0.5)


def profile_from_dict(values: dict[str, Any], file: object | None = None) -> Profile:
    """The profile recorded in a catalog. UserError for a key this version does not know."""
    known = {f.name for f in fields(Profile)}
    if unknown := sorted(set(values) - known):
        raise UserError("unknown profile key", file=file, key=unknown[0], expected=sorted(known))
    return Profile(**values).validate(file)


def _require(ok: bool, profile: Profile, key: str, expected: str, file: object | None) -> None:
    if not ok:
        found = getattr(profile, key)
        raise UserError("invalid profile value", file=file, key=key, found=found, expected=expected)
