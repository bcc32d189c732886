"""The files of a feature store: where each slide's features and coordinates are, and what they were made from.

    features_000.bin …   float16 or float32, slides one after another, at most `chunk_bytes` each
    coords_000.bin …     int32 (x, y), in a unit of the slide's own
    slides.parquet       a row per slide (SCHEMA), sealed
    means.npy            float32 [slides, D]: the mean of all features of each bag, before it was capped
    store.json           what holds for all slides

Coordinates in their own unit are `scale` times the stored integers. `scale` is a power of two, 1 for whole numbers.
Not here: building (mil.store.build), reading (mil.store.reading).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1
SLIDES, MEANS, DESCRIPTION = "slides.parquet", "means.npy", "store.json"
CHUNK_BYTES = 9_500_000_000
COORD_BYTES = 8  # of a row: two int32
BLOCK_ROWS = 4096  # rows read and written at once
DTYPES = ("float16", "float32")
FINEST = 2.0**-12  # of coordinates with fractions

SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("chunk", pa.int32()),
        ("start", pa.int64()),  # first row in the chunk
        ("rows", pa.int32()),
        ("listed_rows", pa.int32()),  # in the bag, before it was capped
        ("has_coords", pa.bool_()),
        ("scale", pa.float64()),
        ("unit", pa.string()),  # px (level 0) or um
        ("side", pa.float64()),  # of a tile, in that unit; null if unknown
        ("side_stated", pa.bool_()),  # whether the bag says it; else it was inferred from the distances
        ("sha256", pa.string()),  # of the stored features and coords
        ("source", pa.string()),
        ("source_bytes", pa.int64()),
        ("source_modified_ns", pa.int64()),
        ("source_sha256", pa.string()),  # of the bag's features and coords
        ("encoder", pa.string()),  # sha256 of the encoder's weights, "" if the bag does not say
    ]
)


def features_file(chunk: int) -> str:
    return f"features_{chunk:03d}.bin"


def coords_file(chunk: int) -> str:
    return f"coords_{chunk:03d}.bin"


def to_integers(coords: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], float]:
    """Coordinates `[N, 2]` as int32 and the scale that gives them back: exactly for whole numbers, else to within a
    4096th of the unit, or coarser where they would not fit. OverflowError for whole numbers beyond int32."""
    whole = np.issubdtype(coords.dtype, np.integer)
    most = float(np.abs(coords).max(initial=0))
    if whole:
        if most >= 2**31:
            raise OverflowError(f"coordinates up to {most:.0f}")
        return coords.astype(np.int32), 1.0
    scale = FINEST
    while most / scale >= 2**31 - 1:
        scale *= 2
    return np.rint(coords / scale).astype(np.int32), scale
