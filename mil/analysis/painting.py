"""Values of tiles as an image: each tile where it is, overlapping ones averaged, and the colours of percentiles.

Not here: the picture with title and legend (.heatmap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.analysis.places import Tiles
from pathray.draw.canvas import blend

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
STOPS = ("#2c3e9e", "#35a7c4", "#f7e36b", "#ef7d22", "#b3121d")  # percentiles 0, 25, 50, 75, 100
OPACITY = 0.5
_STEP = 100 // (len(STOPS) - 1)
_TABLE = np.array([blend(STOPS[p // _STEP], STOPS[min(p // _STEP + 1, 4)], p % _STEP / _STEP) for p in range(101)])


@dataclass(frozen=True)
class Frame:
    """The part of a slide that a picture shows: its upper left corner and its scale, in picture pixels per level-0
    pixel along x and y, and the picture's size (width, height)."""

    left: float
    top: float
    scale: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def of_slide(cls, slide: tuple[int, int], picture: tuple[int, int]) -> Frame:
        """A picture (width, height) of a whole slide (width, height)."""
        return cls(0.0, 0.0, (picture[0] / slide[0], picture[1] / slide[1]), picture)

    @classmethod
    def around(cls, tiles: Tiles, longest: int) -> Frame:
        """All tiles with a margin of a tile, at most `longest` pixels a side."""
        x0, y0, x1, y1 = tiles.box
        left, top, width, height = x0 - tiles.side, y0 - tiles.side, x1 - x0 + 2 * tiles.side, y1 - y0 + 2 * tiles.side
        scale = longest / max(width, height)
        return cls(left, top, (scale, scale), (max(1, round(width * scale)), max(1, round(height * scale))))

    def edges(self, tiles: Tiles) -> npt.NDArray[np.int64]:
        """First and last + 1 pixel of each tile along x and y `[N, 4]` (x0, y0, x1, y1); at least one pixel a side, and
        edges of neighbours meet. Not cut at the picture's border."""
        corner = (tiles.corners - (self.left, self.top)) * self.scale
        far = (tiles.corners + tiles.side - (self.left, self.top)) * self.scale
        first, last = (np.floor(x + 0.5).astype(np.int64) for x in (corner, far))
        return np.concatenate([first, np.maximum(last, first + 1)], axis=1)


def paint(frame: Frame, tiles: Tiles, values: Floats) -> Floats:
    """The mean value of the tiles that cover each pixel `[h, w]`; NaN where none does.

    Sums and counts of rectangles by their four corners (a two-dimensional difference, then cumulative sums): time and
    memory are those of tiles plus pixels, whatever the overlap.
    """
    width, height = frame.size
    edges = np.clip(frame.edges(tiles), 0, [width, height, width, height])
    sums, counts = np.zeros((height + 1, width + 1)), np.zeros((height + 1, width + 1), np.int64)
    for x, y, sign in ((0, 1, 1), (2, 1, -1), (0, 3, -1), (2, 3, 1)):
        np.add.at(sums, (edges[:, y], edges[:, x]), sign * values)
        np.add.at(counts, (edges[:, y], edges[:, x]), sign)
    total, covered = (x.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] for x in (sums, counts))
    out: Floats = np.divide(total, covered, out=np.full(total.shape, np.nan), where=covered > 0)
    return out


def colour_of(percentile: float) -> tuple[int, int, int]:
    """The colour of a percentile, 0 to 100."""
    r, g, b = _TABLE[int(np.clip(percentile, 0, 100) + 0.5)].tolist()
    return r, g, b


def overlay(picture: Pixels, percentiles: Floats, opacity: float = OPACITY) -> Pixels:
    """The picture `[h, w, 3]` with percentiles `[h, w]` in colour over it; NaN leaves it as it is."""
    there = np.isfinite(percentiles)
    out = picture.astype(np.float64)
    colours = _TABLE[np.clip(percentiles[there] + 0.5, 0, 100).astype(np.int64)]
    out[there] = (1 - opacity) * out[there] + opacity * colours
    return np.asarray(out + 0.5, np.uint8)
