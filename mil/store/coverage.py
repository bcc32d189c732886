"""Draws which tiles of a slide a store keeps (green) and which it discards (red), each at its place.

Not here: which tiles are kept (mil.store.cap).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from mil.store.cap import kept_rows
from mil.store.open_bags import open_bag_of
from mil.store.reading import Store
from pathray.draw.canvas import Canvas
from pathray.errors import UserError
from pathray.store.storage import Storage

KEPT, DISCARDED, EMPTY = "#2e8b57", "#cd463c", "#ffffff"
SIDE_PX, HEAD_PX, LEGEND_PX = 640, 34, 26
FOLDER = "coverage_qc"
Pixels = npt.NDArray[np.uint8]


def coverage_picture(store: Store, slide: int) -> bytes | None:
    """A PNG of the tiles of a slide; None for a slide without positions.

    MissingFile, UserError if its bag is no longer there or no longer the one that was stored.
    """
    row = store.slides.slice(slide, 1).to_pylist()[0]
    if not row["has_coords"] or row["side"] is None:
        return None
    of = store.meta["settings"]
    with open_bag_of(row["source"]) as bag:
        rows, coords = bag.rows, bag.coords
    kept = kept_rows(
        rows, of["max_instances"], strategy=of["cap_strategy"], coords=coords,
        grid=of["cap_grid_size"], seed=of["seed"], name=row["slide_id"],
    )  # fmt: skip
    stored = store.stored_coords(slide) * row["scale"]
    if coords is None or len(kept) != len(stored) or not np.allclose(coords[kept], stored, atol=row["scale"]):
        message, expected = "the bag is not the one that was stored", "the bag as it was, or a new build_store"
        raise UserError(message, file=row["source"], key=row["slide_id"], expected=expected)
    places = np.floor(np.asarray(coords, np.float64) / row["side"] + 1e-6).astype(np.int64)
    title = f"{row['slide_id']}: {len(kept):,} of {rows:,} tiles kept ({len(kept) / rows:.0%})"
    return _draw(places - places.min(axis=0), kept, title)


def write_pictures(store: Store, slides: Iterable[int], folder: str, tell: Callable[[], None] = lambda: None) -> int:
    """Write SLIDE_ID.png of each of the `slides` into `folder` (path or URL); returns how many there are, slides
    without positions having none. `tell` is called after each slide."""
    out, count = Storage.of(folder), 0
    for slide in slides:
        if (picture := coverage_picture(store, slide)) is not None:
            out.write_bytes(f"{store.ids[slide]}.png", picture)
            count += 1
        tell()
    return count


def _draw(places: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], title: str) -> bytes:
    """A picture of tiles at `places` `[N, 2]` (column, row)."""
    width, height = (places.max(axis=0) + 1).tolist()
    counts = np.zeros((2, height, width))
    chosen = np.zeros(len(places), np.int64)
    chosen[kept] = 1
    np.add.at(counts, (chosen, places[:, 1], places[:, 0]), 1)
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = _rgb(EMPTY)
    picture[counts[0] > 0] = _rgb(DISCARDED)
    picture[counts[1] > 0] = _rgb(KEPT)
    unit = SIDE_PX / max(width, height)
    paper = Canvas(SIDE_PX, HEAD_PX + height * unit + LEGEND_PX)
    paper.text(8, HEAD_PX / 2, title, 14, anchor="lm")
    paper.picture(picture, 0, HEAD_PX, width * unit, height * unit, smooth=False)
    y = HEAD_PX + height * unit + LEGEND_PX / 2
    for x, colour, words in ((8, KEPT, "kept"), (90, DISCARDED, "discarded")):
        paper.rect(x, y - 6, 12, 12, fill=colour)
        paper.text(x + 18, y, words, 12, anchor="lm")
    return _png(paper.to_picture())


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _png(picture: Pixels) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "png")
    return out.getvalue()
