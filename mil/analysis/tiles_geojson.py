"""A slide's tiles as GeoJSON for QuPath, one after another: a closed square per tile with its attention.

Coordinates are level-0 pixels, as QuPath has them; in these the rings run counter-clockwise (RFC 7946, section 3.1.6).
Not here: the format (pathray.wsi.geojson).
"""

from __future__ import annotations

import os

from mil.analysis.attention import Attention
from mil.analysis.painting import colour_of
from mil.analysis.places import Tiles
from pathray.errors import UserError
from pathray.store.storage import Storage
from pathray.wsi.geojson import GeoJsonWriter

BANDS = (0, 50, 75, 90, 95)  # lower ends, in percentiles
OBJECT_TYPES = ("tile", "annotation", "detection")


def write_geojson(
    store: Storage, name: str, tiles: Tiles, attention: Attention, row: int, *, object_type: str = "tile"
) -> None:
    """Write `name` into `store`, whole or not at all. Each tile has the measurements "attention" and "attention
    percentile", by name of each row of several, and the band of row `row`'s percentile as its class.

    UserError for tiles whose place in level-0 pixels is not known.
    """
    if tiles.unit != "px":
        expected = "a slide with a spacing (slides=…), or a column mpp in its table"
        raise UserError("positions are in µm and the slide's spacing is unknown", key=name, expected=expected)
    if store.local:
        _write(store.join(name), tiles, attention, row, object_type)
        return
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.path.basename(name)
        _write(str(path), tiles, attention, row, object_type)
        store.put(path, name)


def band_of(percentile: float) -> tuple[str, tuple[int, int, int]]:
    """The name and colour of a percentile's band."""
    low = max(end for end in BANDS if percentile >= end or end == 0)
    high = next((end for end in BANDS if end > low), 100)
    return f"Attention {low}-{high}%", colour_of(low if low else 25.0)


def _write(path: str, tiles: Tiles, attention: Attention, row: int, object_type: str) -> None:
    percentiles, weights, side = attention.percentiles, attention.weights, tiles.side
    ends = [f" {name}" if len(attention.names) > 1 else "" for name in attention.names]
    with GeoJsonWriter(path, object_type=object_type) as out:
        for i in range(len(tiles)):
            measurements = {}
            for m, end in enumerate(ends):
                measurements[f"attention{end}"] = float(weights[m, i])
                measurements[f"attention percentile{end}"] = float(percentiles[m, i])
            name, colour = band_of(float(percentiles[row, i]))
            x, y = tiles.corners[i].tolist()
            out.box(x, y, side, side, classification=name, colour=colour, measurements=measurements)
