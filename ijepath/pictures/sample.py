"""One training sample with everything that a picture of it needs: the reader's output and its place on the slide.

Read through the same order, replacement rule and reader as training, so pictures show what a run trains on. Not here:
drawing (ijepath.pictures.panels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ijepath.data import AnchorReader, Pixels, Place, locate
from ijepath.geometry import Boxes, Geometry
from pathray.data.share import Lookup
from pathray.data.stream import decode
from pathray.wsi.thumbnail import thumbnail

THUMBNAIL_PX = 1400
TISSUE_CELLS = 48  # along the context's side


@dataclass(frozen=True)
class PreviewSample:
    """`slide` is the slide's row of the plan; boxes in context pixels, spans in context tokens, `keep` and `predict`
    token indices; `tissue` `[n, n]` shares over the context."""

    position: int
    slide: Mapping[str, Any]
    slide_size: tuple[int, int]
    thumbnail: Pixels
    center: tuple[int, int]
    place: Place
    geometry: Geometry
    context: Pixels
    targets: Pixels
    boxes: Boxes
    spans: npt.NDArray[np.int32]
    keep: npt.NDArray[np.int64]
    predict: npt.NDArray[np.int64]
    tissue: npt.NDArray[np.float64]
    target_tissue: npt.NDArray[np.float64]
    context_mpp: float
    target_mpp: float
    replaced: int  # units that were tried and rejected before this one

    @property
    def slide_id(self) -> str:
        return str(self.slide["slide_id"])

    @property
    def anchor(self) -> str:
        """Centre in level-0 pixels; `<slide_id>:<x>:<y>` is the anchor's id in the catalog."""
        return f"{self.center[0]}_{self.center[1]}"

    @property
    def hidden_tokens(self) -> int:
        """Context tokens of any R."""
        hidden = np.zeros((self.geometry.grid, self.geometry.grid), bool)
        for column0, row0, column1, row1 in np.maximum(self.spans, 0):  # an outside target covers none
            hidden[row0:row1, column0:column1] = True
        return int(hidden.sum())


def read_sample(lookup: Lookup, reader: AnchorReader, position: int) -> PreviewSample:
    """The sample that training gets at `position`. Raises what pathray.data.stream.decode raises."""
    rows = lookup([position])
    batch = decode(reader, rows, lookup)
    replaced = len(batch["faults"])
    unit = lookup.replacement(position, replaced) if replaced else {name: values[0] for name, values in rows.items()}
    source, (x, y) = int(unit["source"]), (int(unit["x"]), int(unit["y"]))
    facts = {name: lookup.plan.sources[name][source].as_py() for name in lookup.plan.sources.column_names}
    geometry = reader.config.kinds[int(batch["kind"][0])].geometry
    mpp0, mpp = float(facts["wsi_level0_spacing_mpp"]), float(batch["context_mpp"][0])
    slide = reader.handles.get(str(facts["wsi_path"]))
    place = locate(x, y, geometry, mpp / geometry.context_mpp, mpp0)
    reach = geometry.margin * geometry.patch
    rim = place.level0([[-reach, -reach, geometry.context_px + reach, geometry.context_px + reach]])[0].tolist()
    window = reader.tissue.window(slide, str(facts["mask_path"] or ""), mpp0, tuple(rim))
    return PreviewSample(
        position=position,
        slide=facts,
        slide_size=slide.level_shapes[0],
        thumbnail=thumbnail(slide, THUMBNAIL_PX),
        center=(x, y),
        place=place,
        geometry=geometry,
        context=batch["context"][0],
        targets=batch["targets"][0],
        boxes=batch["boxes"][0],
        spans=batch["footprints"][0],
        keep=batch["context_keep"][0],
        predict=batch["target_predict"][0],
        tissue=window.share(place.level0(_cells(geometry.context_px))).reshape(TISSUE_CELLS, TISSUE_CELLS),
        target_tissue=window.share(place.level0(batch["boxes"][0])),
        context_mpp=mpp,
        target_mpp=float(batch["target_mpp"][0]),
        replaced=replaced,
    )


def _cells(side: int) -> npt.NDArray[np.float64]:
    """Square cells over the context as boxes `[n², 4]`, raster order."""
    edges = np.linspace(0, side, TISSUE_CELLS + 1)
    y0, x0 = np.meshgrid(edges[:-1], edges[:-1], indexing="ij")
    step = side / TISSUE_CELLS
    return np.stack([x0, y0, x0 + step, y0 + step], axis=-1).reshape(-1, 4)
