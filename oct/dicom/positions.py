"""Order and places of the frames along the slow axis, from their positions; never from the order in the file.

Two attributes give positions: ImagePositionPatient (0020,0032) with ImageOrientationPatient (0020,0037), in mm; and the
ReferenceCoordinates (0022,0032) of the OphthalmicFrameLocationSequence (0022,0031), in pixels of the fundus image. Not
here: which source of a spacing wins (oct.dicom.geometry), circles and stars (oct.dicom.pattern).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oct.dicom.groups import Group, Numbers

Floats = npt.NDArray[np.float64]

EVEN = 0.05  # frames are evenly spaced if none is farther than this many gaps from its place
SAME = 1e-3  # two frames closer than this part of the mean gap are at the same place


@dataclass(frozen=True)
class Places:
    """Frame numbers along the slow axis, and the ordered frames' distances from the first one (increasing)."""

    order: tuple[int, ...]
    offsets: tuple[float, ...]

    @property
    def gap(self) -> float:
        """The mean distance of neighbours."""
        return self.offsets[-1] / (len(self.offsets) - 1)

    @property
    def is_even(self) -> bool:
        """Whether the mean gap describes all places."""
        even = np.arange(len(self.offsets)) * self.gap
        return bool(np.abs(np.asarray(self.offsets) - even).max() <= EVEN * self.gap)

    def scale(self, mm: float) -> Places:
        """The same places in another unit."""
        return Places(self.order, tuple(o * mm for o in self.offsets))


def place_by_positions(frames: Sequence[Group], shared: Group) -> tuple[Places | None, str]:
    """Places in mm along the normal (row × column), and a note if there are positions that cannot be used."""
    positions = [frame.position if _is_vector(frame.position, 3) else None for frame in frames]
    if all(p is None for p in positions):
        return None, ""
    if any(p is None for p in positions):
        return None, "some frames have no valid ImagePositionPatient: positions not used"
    at = np.array(positions, np.float64)
    common = read_orientation(shared.orientation)
    own = {numbers: read_orientation(numbers) for numbers in {frame.orientation for frame in frames}}  # few differ
    normals = {numbers: _normal(common if o is None else o) for numbers, o in own.items()}
    known = [n for n in (normals[frame.orientation] for frame in frames) if n is not None]
    note = "" if known else "no valid ImageOrientationPatient: frames sorted along the line of their positions"
    normal = np.mean(known, axis=0) if known else _main_direction(at)
    places = _sort(at @ (normal / max(float(np.linalg.norm(normal)), 1e-12)))
    return (places, note) if places else (None, "frames share an ImagePositionPatient: positions not used")


def place_by_locations(frames: Sequence[Group], columns: int, dx_mm: float | None) -> tuple[Places | None, str]:
    """Places across parallel scan lines, and a note.

    In mm where `dx_mm` is known: a line of `columns` A-scans is `columns · dx_mm` long, which gives the size of the
    fundus image's pixel. Else in pixels, which only gives the order. The slow axis points down the fundus image, or to
    its right for vertical lines.
    """
    lines = [read_scan_line(f) for f in frames]
    if any(line is None or len(line) != 2 for line in lines):
        return None, ""
    ends = np.array(lines)  # [frames, 2 ends, (row, column)]
    along = ends[:, 1] - ends[:, 0]
    length_px = float(np.median(np.linalg.norm(along, axis=1)))
    if not length_px > 0:
        return None, ""
    along = along * np.where(along @ along[0] < 0, -1.0, 1.0)[:, None]  # of serpentine scans
    direction = along.mean(axis=0) / np.linalg.norm(along.mean(axis=0))
    across = np.array([direction[1], -direction[0]])  # (row, column) of the perpendicular
    across *= 1.0 if max(across, key=abs) > 0 else -1.0
    places = _sort(ends.mean(axis=1) @ across)
    if places is None:
        return None, "frames share a scan line in OphthalmicFrameLocationSequence: locations not used"
    if dx_mm is None:
        return places, ""
    return places.scale(columns * dx_mm / length_px), "dz from scan lines in the fundus image, scaled by their length"


def read_scan_line(frame: Group) -> Floats | None:
    """`[points, 2]` (row, column) of the scan in the fundus image, in its pixels; None where it is not given, or where
    all numbers are 0."""
    numbers = frame.line
    if numbers is None or len(numbers) < 2 or len(numbers) % 2 or not any(numbers):
        return None
    return np.array(numbers, np.float64).reshape(-1, 2) if all(map(math.isfinite, numbers)) else None


def read_orientation(numbers: Numbers | None) -> Floats | None:
    """`[2, 3]` unit vectors along a group's rows and columns; None where its orientation gives no valid ones."""
    if not _is_vector(numbers, 6):
        return None
    vectors = np.array(numbers, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < 0.5 or np.linalg.norm(np.cross(vectors[0], vectors[1])) < 0.5:
        return None
    return np.asarray(vectors / lengths[:, None], np.float64)


def _normal(orientation: Floats | None) -> Floats | None:
    return None if orientation is None else np.cross(*orientation)


def _is_vector(numbers: Numbers | None, count: int) -> bool:
    return numbers is not None and len(numbers) == count and all(map(math.isfinite, numbers))


def _main_direction(at: Floats) -> Floats:
    """The direction `[3]` in which positions differ most; its largest component is positive."""
    direction = np.linalg.svd(at - at.mean(axis=0))[2][0]
    return np.asarray(direction if max(direction, key=abs) > 0 else -direction, np.float64)


def _sort(along: Floats) -> Places | None:
    """Places from coordinates along the slow axis; None if two are the same."""
    order = np.argsort(along, kind="stable")
    offsets = along[order] - along[order[0]]
    gaps = np.diff(offsets)
    if len(gaps) == 0 or offsets[-1] < 1e-6 or gaps.min() < SAME * gaps.mean():
        return None
    return Places(tuple(int(i) for i in order), tuple(float(o) for o in offsets))
