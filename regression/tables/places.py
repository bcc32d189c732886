"""The places of a table's images in their sections, for maps: optional columns of the table, which training ignores.

`x`, `y` are the centre in pixels of the section's image. Optional: `section` (default: the group), `image` (path of the
section's image), `image_mpp` (its µm per pixel) and `radius_px` (of a spot). Not here: the maps
(regression.reports.figures), cutting the patches (regression.tables.spatial).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]
NUMBERS, TEXTS = ("x", "y", "image_mpp", "radius_px"), ("section", "image")


@dataclass(frozen=True)
class Places:
    """One entry per row `[N]`. `image` is a path or URL, "" if unknown; `image_mpp` and `radius_px` are NaN if
    unknown."""

    x: Floats
    y: Floats
    section: Strings
    image: Strings
    image_mpp: Floats
    radius_px: Floats

    def take(self, rows: npt.NDArray[np.int64]) -> Places:
        return Places(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def hash(self) -> str:
        """Digest of all entries."""
        return hashlib.sha256(repr([v.tolist() for v in self.columns().values()]).encode()).hexdigest()

    def columns(self) -> dict[str, Floats | Strings]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def places_in(sources: pa.Table) -> Places | None:
    """The places in a plan's sources; None if its table had no coordinates."""
    if not {"x", "y"} <= set(sources.column_names):
        return None
    columns: dict[str, Any] = {name: np.asarray(sources[name].to_numpy(), np.float64) for name in NUMBERS}
    columns |= {name: np.array(sources[name].to_pylist(), np.str_) for name in TEXTS}
    return Places(**columns)
