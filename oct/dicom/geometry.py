"""The spacing ledger: value and source of a volume's spacing per axis, and the order and places of its frames.

The first source that says it counts, in the order of `oct.volume.SOURCES`. PixelSpacing (0028,0030) is (dy, dx): first
between rows, then between columns. dz comes from positions or from SpacingBetweenSlices (0018,0088); SliceThickness
(0018,0050) is how thick a B-scan is, not how far the next one is, and is never used. Not here: positions of frames
(oct.dicom.positions), what a volume is (oct.dicom.header).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from pydicom.dataset import Dataset

from oct.dicom.attributes import read_numbers
from oct.dicom.groups import Group
from oct.dicom.positions import Places, place_by_locations, place_by_positions
from oct.volume import ASSUMED_MM, AXES, Geometry

ManifestSpacing = tuple[float | None, float | None, float | None]
VARIES = 0.01  # spacings of frames that differ by more than this part are noted


class Ledger:
    """Spacing per axis, filled from the most trusted source to the least: what is there is never overwritten."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []

    def take(self, axis: str, value: float | None, source: str, where: str = "") -> None:
        """Record `value` in mm if the axis has none yet. A value that cannot be a spacing is noted instead."""
        if value is None:
            return
        if not (math.isfinite(value) and value > 0):
            self.note(f"{where or source}: {value:g} is no spacing of {axis}: not used")
        elif axis not in self.values:
            self.values[axis], self.sources[axis] = float(value), source

    def take_pair(self, pair: tuple[float, ...] | None, source: str, where: str) -> None:
        """Record a PixelSpacing as dy and dx. One that is not two numbers is noted."""
        if pair is None:
            return
        if len(pair) != 2:
            self.note(f"{where}: PixelSpacing has {len(pair)} numbers, not 2: not used")
            return
        for axis, value in zip("yx", pair, strict=True):
            self.take(axis, value, source, where)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text and text not in self.notes:
            self.notes.append(text)


def read_geometry(
    dataset: Dataset,
    shared: Group,
    frame_groups: Sequence[Group],
    frames: int,
    columns: int,
    manifest_spacing: ManifestSpacing | None,
) -> Geometry:
    """Spacing, sources, frame order and offsets of a volume of `frames` B-scans with `columns` A-scans.

    manifest_spacing: (dz, dy, dx) in mm from a manifest, None for what it does not say.
    """
    ledger = Ledger()
    groups = match_groups(frame_groups, frames, ledger)
    _take_frame_measures(ledger, groups)
    ledger.take_pair(shared.spacing, "shared_measures", "shared groups")
    ledger.take_pair(read_numbers(dataset, "PixelSpacing"), "root", "root")
    for axis, value in zip(AXES[1:], (manifest_spacing or (None,) * 3)[1:], strict=True):
        ledger.take(axis, value, "manifest")
    places = _place(ledger, groups, shared, columns)
    _take_between_slices(ledger, groups, shared, dataset)
    ledger.take("z", manifest_spacing[0] if manifest_spacing else None, "manifest")
    for axis in AXES:
        ledger.take(axis, ASSUMED_MM, "assumed")
    return _geometry(ledger, places, _order(groups, places, frames, ledger))


def match_groups(groups: Sequence[Group], frames: int, ledger: Ledger | None = None) -> Sequence[Group]:
    """The per-frame functional groups; none if they are not one per frame."""
    if len(groups) == frames:
        return groups
    if groups and ledger is not None:
        ledger.note(f"{len(groups)} per-frame functional groups for {frames} frames: not used")
    return []


def _take_frame_measures(ledger: Ledger, groups: Sequence[Group]) -> None:
    """The median over the frames' own PixelMeasures."""
    pairs = [group.spacing for group in groups]
    for i, axis in enumerate("yx"):
        values = [pair[i] for pair in pairs if pair is not None and len(pair) == 2]
        valid = [v for v in values if math.isfinite(v) and v > 0]
        if values and not valid:
            ledger.take(axis, values[0], "frame_measures", "per-frame groups")
        elif valid:
            ledger.take(axis, median(valid), "frame_measures")
            if max(valid) - min(valid) > VARIES * min(valid):
                ledger.note(f"spacing of {axis} varies between frames from {min(valid):g} to {max(valid):g} mm: median")
    if any(pair is not None and len(pair) != 2 for pair in pairs):
        ledger.note("per-frame groups: a PixelSpacing does not have 2 numbers: not used")


def _place(ledger: Ledger, groups: Sequence[Group], shared: Group, columns: int) -> Places | None:
    """Order and places from positions, or else from scan lines; the mean gap is recorded as dz if it is in mm."""
    if len(groups) < 2:
        return None
    places, note = place_by_positions(groups, shared)
    ledger.note(note)
    in_mm = places is not None
    if places is None:
        places, note = place_by_locations(groups, columns, ledger.values.get("x"))
        ledger.note(note)
        in_mm = "x" in ledger.values
    if places is not None and in_mm:
        ledger.take("z", places.gap, "positions")
    return places


def _take_between_slices(ledger: Ledger, groups: Sequence[Group], shared: Group, dataset: Dataset) -> None:
    own, root = groups[0].between_slices if groups else None, read_numbers(dataset, "SpacingBetweenSlices")
    for numbers, where in ((own, "per-frame groups"), (shared.between_slices, "shared groups"), (root, "root")):
        if numbers is not None:
            ledger.take("z", numbers[0], "between_slices", f"{where}, SpacingBetweenSlices")


def _order(groups: Sequence[Group], places: Places | None, frames: int, ledger: Ledger) -> tuple[int, ...]:
    """By place; else by InStackPositionNumber (0020,9057); else as stored."""
    if places is not None:
        return places.order
    numbers = [group.number for group in groups if group.number is not None]
    if frames > 1 and len(groups) == len(set(numbers)) == frames:
        return tuple(int(i) for i in np.argsort(np.array(numbers, np.int64), kind="stable"))
    if frames > 1:
        ledger.note("no position of frames: kept in their stored order")
    return tuple(range(frames))


def _geometry(ledger: Ledger, places: Places | None, order: tuple[int, ...]) -> Geometry:
    spacing = (ledger.values["z"], ledger.values["y"], ledger.values["x"])
    sources = (ledger.sources["z"], ledger.sources["y"], ledger.sources["x"])
    offsets = None
    if places is not None and not places.is_even:
        offsets = places.scale(spacing[0] / places.gap).offsets
        ledger.note("frames are not evenly spaced: interpolated at their true positions")
        if sources[0] == "assumed":
            ledger.note("gaps of frames are known in proportion only")
    return Geometry(spacing, sources, order, offsets, tuple(ledger.notes))
