"""Tells circular and radial scans from raster scans, by what their headers say and never by a name.

Not here: SOP classes and other reasons for exclusion (oct.dicom.header).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from oct.dicom.attributes import first_item, read_text
from oct.dicom.positions import Floats, read_orientation, read_scan_line

CLOSED_PX = 1.0  # a line whose ends are closer than this is closed
BENT = 1.2  # so does one that is this many times as long as the distance of its ends
FAN_DEGREES = 15.0  # scans whose directions differ by more are a star or a cross


def scan_pattern(frames: Sequence[Dataset]) -> str:
    """`circular`, `radial` or `raster`.

    frames: the items of the per-frame functional groups. Circular: a frame's OphthalmicImageOrientation (0022,0039) is
    NONLINEAR or its scan line is closed. Radial: directions of scan lines, or of the frames' rows, differ.
    """
    lines = [read_scan_line(frame) for frame in frames]
    if any(_goes_round(frame, line) for frame, line in zip(frames, lines, strict=True)):
        return "circular"
    along = [line[-1] - line[0] for line in lines if line is not None and len(line) > 1]
    rows = [o[0] for o in (read_orientation(frame) for frame in frames) if o is not None]
    is_fan = any(_spread_degrees(vectors) > FAN_DEGREES for vectors in (along, rows) if len(vectors) > 1)
    return "radial" if is_fan else "raster"


def _goes_round(frame: Dataset, line: Floats | None) -> bool:
    location = first_item(frame, "OphthalmicFrameLocationSequence")
    if read_text(location, "OphthalmicImageOrientation").upper() == "NONLINEAR":
        return True
    if line is None or len(line) < 2:
        return False
    ends = float(np.linalg.norm(line[-1] - line[0]))
    path = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    return ends < CLOSED_PX or path > BENT * ends


def _spread_degrees(vectors: Sequence[Floats]) -> float:
    """The largest angle of a vector's line to that of the first one, 0 … 90."""
    units = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.clip(np.abs(units @ units[0]).min(), 0, 1))))
