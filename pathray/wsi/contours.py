"""The outline of tissue, as polygons in level-0 pixels or drawn on a picture of the slide.

Not here: how tissue is found (pathray.wsi.tissue).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pathray.wsi.resize import resize

COLOUR = (232, 66, 12)  # a colour that no stain has
MAX_SIDE = 2048  # of a mask that is traced, in cells
GLASS = 0.93  # brightness factor of the background

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Polygon = tuple[Floats, list[Floats]]  # the outer ring [n, 2] and the holes, closed


def tissue_polygons(tissue: npt.NDArray[Any], width: int, height: int) -> list[Polygon]:
    """The outlines of the tissue in a mask ``[h, w]`` (> 0 is tissue), in level-0 pixels, the largest first.

    The slide has `width` × `height` level-0 pixels. Outlines follow the edges of the mask's cells, with corners cut
    off. A mask with more than MAX_SIDE cells along a side is reduced first.
    """
    from contourpy import FillType, contour_generator

    inside = _shrink(tissue)
    h, w = inside.shape
    contours = contour_generator(z=np.pad(inside, 1).astype(np.float32), fill_type=FillType.OuterOffset)
    found = cast("tuple[list[Floats], list[npt.NDArray[np.uint32]]]", contours.filled(0.5, 2.0))
    cell = np.array([width / w, height / h])
    polygons = []
    for points, offsets in zip(*found, strict=True):
        placed = np.clip((points - 0.5) * cell, 0.0, [width, height])  # the padding moved cell centres by a whole cell
        rings = [_drop_collinear(placed[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        polygons.append((rings[0], rings[1:]))
    return sorted(polygons, key=lambda polygon: -area(polygon[0]))


def area(ring: Floats) -> float:
    """The area of a closed ring, in square pixels."""
    (x, y), (nx, ny) = ring[:-1].T, ring[1:].T
    return float(abs(np.sum(x * ny - nx * y)) / 2)


def dim_glass(picture: Pixels, tissue: npt.NDArray[Any]) -> Pixels:
    """A picture ``[h, w, 3]`` of the whole slide with its background darkened a little."""
    out = picture.astype(np.float32)
    out[~_scale_to(tissue, picture)] *= GLASS
    return out.astype(np.uint8)


def draw_outline(picture: Pixels, tissue: npt.NDArray[Any], colour: Sequence[int] = COLOUR) -> Pixels:
    """The picture with its background dimmed and the outline of the tissue drawn on it."""
    from scipy.ndimage import binary_dilation, binary_erosion

    inside, out = _scale_to(tissue, picture), dim_glass(picture, tissue)
    out[binary_dilation(inside & ~binary_erosion(inside, border_value=1), iterations=1)] = colour
    return out


def _scale_to(tissue: npt.NDArray[Any], picture: Pixels) -> npt.NDArray[np.bool_]:
    height, width = picture.shape[:2]
    return resize((tissue > 0).astype(np.uint8) * 255, width, height) > 127  # linear: no staircases


def _shrink(tissue: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    h, w = tissue.shape
    scale = min(1.0, MAX_SIDE / max(h, w))
    if scale == 1.0:
        return tissue > 0
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return resize((tissue > 0).astype(np.uint8) * 255, *size) > 127


def _drop_collinear(ring: Floats) -> Floats:
    """A closed ring without the points that lie on a straight line between their neighbours, to a tenth of a pixel."""
    corners = ring[:-1]
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-6
    kept = np.round(corners[turns] if turns.sum() >= 3 else corners, 1)
    return np.concatenate([kept, kept[:1]])
