"""Where the retina is in the depth of a volume, told from the intensity of a few B-scans, without labels.

In each of `BLOCKS` groups of neighbouring A-scans, the retina is what is brighter than halfway between background and
the brightest tissue; its row is the middle of that light. The volume's row is the median over all groups of all frames,
weighted by their contrast, so that shadows, bars and single frames do not move it. Not here: what is done with the row
(oct.dicom.axis), decoding (oct.dicom.frames).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
FRAMES = 5  # that are looked at, evenly spaced
BLOCKS = 16  # of A-scans per frame
SMOOTH = 1 / 64  # of the depth: speckle is averaged over it
BACKGROUND, TISSUE = 10, 98  # percentiles of an A-scan's greys
LEAST_CONTRAST = 0.02  # of the range of greys: less is noise
REACH = 0.25  # of the depth, to either side: brightness further from the retina's row does not count
ROUNDS = 6
NOT_FOUND = "no retina found by its brightness: the middle of its depth is used"


def frames_to_look_at(count: int) -> list[int]:
    """At most `FRAMES` of `count` frames, evenly spaced."""
    if count <= FRAMES:
        return list(range(count))
    return [int((i + 0.5) * count / FRAMES) for i in range(FRAMES)]


def find_retina(frames: Iterable[np.ndarray], largest: float) -> float | None:
    """The retina's row, from 0, in B-scans `[rows, columns]` of greys 0 … `largest`; None where nothing stands out.

    Only one frame is held at a time.
    """
    rows, weights = [], []
    for frame in frames:
        columns = _block_means(frame) / np.float32(largest)
        row, contrast = _rows_of(_smooth(columns))
        rows.append(row)
        weights.append(contrast)
    if not rows:
        return None
    row, contrast = np.concatenate(rows), np.concatenate(weights)
    seen = contrast >= LEAST_CONTRAST
    return _weighted_median(row[seen], contrast[seen]) if seen.any() else None


def _block_means(frame: np.ndarray) -> Floats:
    """`[rows, columns]` → `[rows, blocks]`, the mean of each group of neighbouring columns."""
    columns = frame.shape[1]
    edges = np.linspace(0, columns, min(BLOCKS, columns) + 1).astype(int)
    sums = np.add.reduceat(frame, edges[:-1], axis=1, dtype=np.float32)
    return np.asarray(sums / np.diff(edges), np.float32)


def _smooth(columns: Floats) -> Floats:
    """The mean over `SMOOTH` of the depth around each row; at the ends, over what is there."""
    rows = len(columns)
    half = max(1, round(rows * SMOOTH / 2))
    total = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, axis=0, dtype=np.float64)])
    first, end = np.maximum(np.arange(rows) - half, 0), np.minimum(np.arange(rows) + half + 1, rows)
    smooth: Floats = ((total[end] - total[first]) / (end - first)[:, None]).astype(np.float32)
    return smooth


def _rows_of(columns: Floats) -> tuple[Floats, Floats]:
    """The retina's row in each of the A-scans `[rows, blocks]`, and their contrast; both `[blocks]`.

    After a first look at all of the depth, the retina is looked for around its row alone, with the background and the
    brightest tissue that are there: so what else the depth shows, and how much of it, does not matter.
    """
    found = np.array([_row_of(np.ascontiguousarray(column)) for column in columns.T], np.float32)
    return found[:, 0], found[:, 1]


def _row_of(column: Floats) -> tuple[float, float]:
    """Row and contrast of one A-scan `[rows]`."""
    rows, (row, contrast) = len(column), _middle(column)
    for _ in range(ROUNDS):
        first = max(0, round(row - REACH * rows))
        middle, contrast = _middle(column[first : round(row + REACH * rows) + 1])
        row = first + middle
    return row, contrast


def _middle(column: Floats) -> tuple[float, float]:
    """The middle of what is brighter than halfway, and the contrast."""
    low, high = np.percentile(column, (BACKGROUND, TISSUE))
    light = np.maximum(column - (low + high) / 2, 0)
    return float(light @ np.arange(len(column))) / max(float(light.sum()), 1e-9), float(high - low)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order], dtype=np.float64)
    return float(values[order][np.searchsorted(below, below[-1] / 2)])
