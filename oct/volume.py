"""What is known of one OCT volume, and what a volume on a grid is: the types that reading, index and training share.

Axes are (z, y, x): the slow axis from B-scan to B-scan, depth into the eye (a B-scan's rows), and along a B-scan (its
columns). Not here: DICOM (oct.dicom), the manifest (oct.indexing.manifest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Triple = tuple[float, float, float]

AXES = ("z", "y", "x")
SOURCES = (  # of a spacing, the most trusted first
    "positions",  # z: distances between the frames' positions along their normal
    "frame_measures",  # PixelMeasures of the per-frame functional groups
    "shared_measures",  # PixelMeasures of the shared functional groups
    "between_slices",  # z: SpacingBetweenSlices
    "root",  # tags at the root of the data set
    "manifest",
    "assumed",  # nothing says it: 1 mm, which never resamples
)
ASSUMED_MM = 1.0
CENTER, RETINA = CROPS = ("center", "retina")
GREY = 32_767  # the largest value of a volume on a grid: every source's range is stretched to 0 … GREY


@dataclass(frozen=True)
class Geometry:
    """Spacing and order of a volume's frames.

    spacing_mm: (dz, dy, dx). sources: where each comes from, of `SOURCES`. order: frame numbers (from 0) along the slow
    axis. offsets_mm: the place of each ordered frame, from 0 and increasing; None where they are evenly spaced or
    nothing says it. notes: what a reader of the index should know, one sentence each.
    """

    spacing_mm: Triple
    sources: tuple[str, str, str]
    order: tuple[int, ...]
    offsets_mm: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VolumeHeader:
    """What a DICOM file says of itself, without its pixels.

    laterality: R, L, or empty where the file does not say; never assumed. exclusion: why this is not a volume to train
    on, in one word, else empty.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    frames: int
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    manufacturer: str
    model: str
    laterality: str
    geometry: Geometry
    exclusion: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The grid that every volume is put on: voxels per axis, and their spacing in mm.

    crop: where in depth the grid is, of `CROPS`: at the middle of the volume's depth, or of its retina.
    """

    shape: tuple[int, int, int] = (64, 384, 384)
    spacing_mm: Triple = (0.05, 0.02, 0.02)
    crop: str = CENTER


class Sampled(NamedTuple):
    """A volume on a grid.

    image: int16 `[D, H, W]`, 0 … GREY, 0 outside the volume. inside: int32 `[3, 2]`, first and last + 1 voxel of the
    volume per axis. spacing_mm: of this grid's voxels; NaN on an axis of assumed spacing, which was fitted to the grid.
    """

    image: npt.NDArray[np.int16]
    inside: npt.NDArray[np.int32]
    spacing_mm: Triple
