"""Tells circular and radial scans from raster scans, by what their headers say and never by a name.

Not here: SOP classes and other reasons for exclusion (oct.dicom.header).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from oct.dicom.groups import Group
from oct.dicom.positions import Floats, read_orientation, read_scan_line

CLOSED_PX = 1.0  # a line whose ends are closer than this is closed
BENT = 1.2  # so does one that is this many times as long as the distance of its ends
FAN_DEGREES = 15.0  # scans whose directions differ by more are a star or a cross


def scan_pattern(frames: Sequence[Group]) -> str:
    """`circular`, `radial` or `raster`.

    frames: the per-frame functional groups. Circular: a frame's OphthalmicImageOrientation (0022,0039) is
    NONLINEAR or its scan line is closed. Radial: directions of scan lines, or of the frames' rows, differ.
    """
    lines = [read_scan_line(frame) for frame in frames]
    if any(_goes_round(frame, line) for frame, line in zip(frames, lines, strict=True)):
        return "circular"
    along = [line[-1] - line[0] for line in lines if line is not None and len(line) > 1]
    rows = [o[0] for o in map(read_orientation, {frame.orientation: None for frame in frames}) if o is not None]
    is_fan = any(_spread_degrees(vectors) > FAN_DEGREES for vectors in (along, rows) if len(vectors) > 1)
    return "radial" if is_fan else "raster"


def _goes_round(frame: Group, line: Floats | None) -> bool:
    if frame.line_kind.upper() == "NONLINEAR":
        return True
    if line is None or len(line) < 2:
        return False
    points = line.tolist()
    ends = math.dist(points[0], points[-1])
    path = sum(math.dist(*pair) for pair in pairwise(points))
    return ends < CLOSED_PX or path > BENT * ends


def _spread_degrees(vectors: Sequence[Floats]) -> float:
    """The largest angle of a vector's line to that of the first one, 0 … 90."""
    units = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.clip(np.abs(units @ units[0]).min(), 0, 1))))
