"""Slides and anchors as tables, without any image: for tests of the catalog and the plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from ijepath.indexing.anchors import SlideAnchors
from ijepath.indexing.index import COLUMNS, SlideIndex, write_index
from ijepath.profile import Profile


def index_row(slide_id: str, organ: str | None = None, mpp: float = 0.5, **facts: Any) -> dict[str, Any]:
    """An ok row of a slide index, 8192² at `mpp`, without a mask."""
    row = dict.fromkeys(COLUMNS) | {"slide_id": slide_id, "wsi_path": f"/slides/{slide_id}.tiff", "mask_path": ""}
    row |= {"status": "ok", "error": "", "wsi_level0_width": 8192, "wsi_level0_height": 8192, "organ": organ}
    row |= {"wsi_level0_spacing_mpp": mpp, "wsi_spacings_mpp": [mpp], "wsi_shapes": [[8192, 8192]], "backend": "tiff"}
    return row | facts


def anchors_at(row: dict[str, Any], count: int, first: int = 0) -> SlideAnchors:
    """`count` anchors of a slide at made-up places in raster order, all different."""
    n = np.arange(first, first + count, dtype=np.int64)
    mpp = row["wsi_level0_spacing_mpp"]
    return SlideAnchors(row, "", "", 100 + n % 7, 200 + n // 7, (n % 11 / 10).astype(np.float32), 2 * mpp, mpp)


def write_small_index(path: str, rows: list[dict[str, Any]], metadata_columns: tuple[str, ...] = ("organ",)) -> str:
    write_index(path, SlideIndex(tuple(rows), metadata_columns))
    return path


def small_profile() -> Profile:
    return Profile(profile_id="small", context_fov_um=64.0, target_fov_um=16.0)
