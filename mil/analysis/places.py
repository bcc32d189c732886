"""Where a slide's tiles are: upper left corners and side in level-0 pixels, exactly as stored.

Not here: which pixel of a picture a tile covers (.heatmap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.store.reading import Store
from pathray.errors import UserError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tiles:
    """Corners `[N, 2]` (x, y) and `side` in level-0 pixels, or in µm where no spacing is known (`unit`). `notes`: what
    a reader of a picture should know."""

    corners: Floats
    side: float
    unit: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of all tiles."""
        low, high = self.corners.min(axis=0), self.corners.max(axis=0) + self.side
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def place_tiles(store: Store, slide: int, mpp: float | None = None) -> Tiles:
    """The tiles of a slide. Stored µm become pixels with `mpp`, µm per level-0 pixel, where it is known. UserError for
    a slide without positions or without a side."""
    row = store.slides.slice(slide, 1).to_pylist()[0]
    if not row["has_coords"] or row["side"] is None:
        raise UserError("the bag has no positions", key=row["slide_id"], expected="coords, and the side of a tile")
    corners, side, unit = store.stored_coords(slide) * float(row["scale"]), float(row["side"]), str(row["unit"])
    if unit == "um" and mpp:
        corners, side, unit = corners / mpp, side / mpp, "px"
    notes = []
    if not row["side_stated"]:
        notes.append(f"the side of a tile, {side:g} {unit}, was inferred from the distances between tiles")
    if row["listed_rows"] > row["rows"]:
        notes.append(f"the store keeps {row['rows']:,} of the bag's {row['listed_rows']:,} tiles")
    return Tiles(np.asarray(corners, np.float64), side, unit, tuple(notes))


def check_inside(tiles: Tiles, size: tuple[int, int], slide_id: str) -> None:
    """UserError where a tile's centre is outside of a slide of `size` (width, height): then it is another slide, or the
    positions are of another level."""
    centres = tiles.corners + tiles.side / 2
    outside = ((centres < 0) | (centres > np.array(size))).any(axis=1)
    if outside.any():
        x, y = centres[outside][0]
        found = f"{int(outside.sum())} tiles, such as at ({x:.0f}, {y:.0f})"
        expected = f"inside {size[0]} x {size[1]} pixels"
        raise UserError("tiles are outside of the slide", key=slide_id, found=found, expected=expected)
