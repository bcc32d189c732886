"""What a slide looks like under its tiles: a thumbnail and crops of tiles; without its file a blank canvas.

Not here: drawing (.heatmap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mil.analysis.attention import Attention
from mil.analysis.heatmap import View
from mil.analysis.painting import Frame
from mil.analysis.places import Tiles, check_inside
from pathray.wsi.reader import SlideReader
from pathray.wsi.regions import read_regions
from pathray.wsi.thumbnail import thumbnail

CROP_PX, BLANK = 256, 246
Ints = npt.NDArray[np.int64]


def view_slide(reader: SlideReader, tiles: Tiles, top: Ints, *, longest: int, mpp: float | None, slide_id: str) -> View:
    """The thumbnail of an open slide and the crops of tiles `top`. UserError where tiles are outside of it; raises what
    reading raises."""
    size = reader.level_shapes[0]
    check_inside(tiles, size, slide_id)
    picture = thumbnail(reader, longest)
    height, width = picture.shape[:2]
    return View(picture, Frame.of_slide(size, (width, height)), top, read_crops(reader, tiles, top), mpp)


def read_crops(reader: SlideReader, tiles: Tiles, which: Sequence[int] | Ints) -> list[npt.NDArray[np.uint8]]:
    """Tiles `[CROP_PX, CROP_PX, 3]` at their own field, whatever their resolution."""
    centres = [(float(x), float(y)) for x, y in tiles.corners[which] + tiles.side / 2]
    if not centres:
        return []
    found = read_regions(reader, centres, CROP_PX, tiles.side / CROP_PX, mpp0=1.0)
    return [region.pixels for region in found]


def view_blank(tiles: Tiles, top: Ints, *, longest: int, mpp: float | None = None) -> View:
    """A pale canvas around the tiles."""
    frame = Frame.around(tiles, longest)
    picture = np.full((frame.size[1], frame.size[0], 3), BLANK, np.uint8)
    return View(picture, frame, top, (), 1.0 if tiles.unit == "um" else mpp, blank=True)


def most_attended(attention: Attention, row: int, count: int) -> Ints:
    """The `count` tiles with the largest weights, the first of equals first."""
    return np.argsort(-attention.weights[row], kind="stable")[:count]
