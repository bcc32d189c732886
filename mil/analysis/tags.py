"""Where the numbers of framed tiles go, so that no number covers another one. Not here: drawing them (.heatmap)."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom
GAP, HEIGHT, STEPS = 2.0, 13.0, 8


def place_tags(frames: Sequence[Box], widths: Sequence[float], bounds: Box) -> list[tuple[float, float]]:
    """The upper left corner of a tag of each width, next to its frame: to the right, the left, above or below, then
    further away. The first place inside `bounds` that covers no earlier tag, or the first one where there is none."""
    taken: list[Box] = []
    for frame, width in zip(frames, widths, strict=True):
        boxes = [(x, y, x + width, y + HEIGHT) for x, y in _places(frame, width)]
        free = (box for box in boxes if _is_inside(box, bounds) and not any(_overlap(box, other) for other in taken))
        taken.append(next(free, boxes[0]))
    return [(left, top) for left, top, _, _ in taken]


def _places(frame: Box, width: float) -> list[tuple[float, float]]:
    left, top, right, bottom = frame
    out = []
    for step in range(STEPS):
        x, y = step * (width + 1), step * (HEIGHT + 1)
        out += [(right + GAP + x, top), (left - GAP - width - x, top)]
        out += [(left, top - GAP - HEIGHT - y), (left, bottom + GAP + y)]
    return out


def _is_inside(box: Box, bounds: Box) -> bool:
    return box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
