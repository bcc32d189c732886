"""Draws one picture per slide with its tissue and its anchors, to check masks at a glance.

The tissue is the mask that anchors were built from (given, or computed at 8 µm/px). An anchor is a dot at its context's
centre, coloured by the tissue share of the context. Not here: what training sees (ijepath.pictures.previews).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ijepath.indexing.catalog import Catalog
from pathray.draw.canvas import CARD, FAINT, INK, MUTED, Canvas, Picture, blend
from pathray.wsi.contours import COLOUR as CONTOUR
from pathray.wsi.contours import draw_outline
from pathray.wsi.kept_masks import cached_tissue_mask
from pathray.wsi.reader import open_mask, open_slide
from pathray.wsi.thumbnail import thumbnail

THUMBNAIL_PX = 1600
PICTURE, ASIDE, MARGIN, HEADER = 900.0, 230.0, 32.0, 84.0
STOPS = ("#ffd400", "#12a594", "#12297a")  # tissue share 0, 1/2, 1
COLUMNS = (
    "slide_id",
    "center_x_level0",
    "center_y_level0",
    "tissue_fraction",
    "wsi_path",
    "mask_path",
    "wsi_level0_spacing_mpp",
    "context_size_level0",
)


@dataclass(frozen=True)
class SlideOverlay:
    """A slide of the catalog with its anchors: centres `[N]` in level-0 pixels and tissue shares `[N]`."""

    slide: Mapping[str, Any]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    tissue: npt.NDArray[np.float32]


def slides_of(catalog: Catalog) -> Iterator[SlideOverlay]:
    """The catalog's slides in its order, one in memory at a time."""
    parts: list[dict[str, npt.NDArray[Any]]] = []
    for batch in catalog.batches(COLUMNS, 1 << 16):
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS}
        cuts = np.flatnonzero(columns["slide_id"][1:] != columns["slide_id"][:-1]) + 1
        for piece in np.split(np.arange(batch.num_rows), cuts):
            if parts and columns["slide_id"][piece[0]] != parts[-1]["slide_id"][0]:
                yield _join(parts)
                parts = []
            parts.append({name: values[piece] for name, values in columns.items()})
    if parts:
        yield _join(parts)


def _join(parts: list[dict[str, npt.NDArray[Any]]]) -> SlideOverlay:
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    facts = {name: columns[name][0] for name in COLUMNS}
    return SlideOverlay(facts, columns["center_x_level0"], columns["center_y_level0"], columns["tissue_fraction"])


def draw_overlay(overlay: SlideOverlay, profile_name: str, scale: float = 1.0) -> Picture:
    """Thumbnail, tissue contour, anchors, legend. Raises what opening or reading the slide or its mask raises."""
    facts = overlay.slide
    mpp0, mask_path = float(facts["wsi_level0_spacing_mpp"]), str(facts["mask_path"] or "")
    slide = open_slide(str(facts["wsi_path"]))
    try:
        picture, size = thumbnail(slide, THUMBNAIL_PX), slide.level_shapes[0]
        tissue = _mask(mask_path) if mask_path else cached_tissue_mask(slide, mpp0)
    finally:
        slide.close()
    unit = PICTURE / max(size)
    width, height = size[0] * unit, size[1] * unit
    canvas = Canvas(width + ASIDE + 3 * MARGIN, HEADER + max(height, 430) + MARGIN, scale)
    _header(canvas, overlay)
    canvas.picture(draw_outline(picture, tissue), MARGIN, HEADER, width, height)
    canvas.rect(MARGIN, HEADER, width, height, outline=FAINT)
    _anchors(canvas, overlay, unit)
    canvas.scale_bar(MARGIN + 8, HEADER + height - 8, mpp0 / unit, 0.25 * width, size=12)
    share = float((tissue > 0).mean())
    _draw_facts(canvas, overlay, (width + 2 * MARGIN, HEADER), share, profile_name, bool(mask_path))
    return canvas.to_picture()


def share_colour(share: float) -> tuple[int, int, int]:
    """The colour of a tissue share between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    return blend(STOPS[low], STOPS[low + 1], place - low)


def _mask(path: str) -> npt.NDArray[np.uint8]:
    mask = open_mask(path)
    try:
        return thumbnail(mask, THUMBNAIL_PX)
    finally:
        mask.close()


def _header(canvas: Canvas, overlay: SlideOverlay) -> None:
    canvas.text(MARGIN, 22, str(overlay.slide["slide_id"]), 22, INK, bold=True)
    canvas.text(MARGIN, 54, "tissue, and the anchors: the centres of contexts", 13, MUTED)


def _anchors(canvas: Canvas, overlay: SlideOverlay, unit: float) -> None:
    """Draw the context with the most tissue as a dashed frame, and every anchor as a dot over it."""
    side = float(overlay.slide["context_size_level0"]) * unit
    x, y = MARGIN + overlay.x * unit, HEADER + overlay.y * unit
    best, radius = int(np.argmax(overlay.tissue)), float(np.clip(0.09 * side, 1.2, 6.0))
    _one_context(canvas, float(x[best]) - side / 2, float(y[best]) - side / 2, side)
    for left, top, share in zip(x.tolist(), y.tolist(), overlay.tissue.tolist(), strict=True):
        canvas.dot(left, top, radius * 1.3, "#ffffff")
        canvas.dot(left, top, radius, share_colour(share))


def _one_context(canvas: Canvas, x: float, y: float, side: float) -> None:
    """Draw a frame of dark dashes on white, visible on any stain."""
    canvas.rect(x - 1, y - 1, side + 2, side + 2, outline="#ffffff", line=2)
    canvas.frame(x, y, side, side, INK, 2, 5)


def _draw_facts(
    canvas: Canvas, overlay: SlideOverlay, corner: tuple[float, float], share: float, profile: str, given: bool
) -> None:
    x, y = corner
    mpp = float(overlay.slide["wsi_level0_spacing_mpp"])
    field = float(overlay.slide["context_size_level0"]) * mpp
    facts = (
        ("anchors", f"{overlay.x.size:,}"),
        ("context", f"{field:.3g} µm"),
        ("spacing, level 0", f"{mpp:.4g} µm/px"),
        ("tissue of the slide", f"{100 * share:.0f}%"),
        ("mask", "given" if given else "computed"),
    )
    canvas.rect(x, y, ASIDE, 430, fill=CARD, radius=10)
    x, y = x + 18, y + 18
    for name, value in facts:
        canvas.text(x, y, name, 11, MUTED)
        canvas.text(x, y + 14, value, 15, INK, bold=True)
        y += 42
    y += 10
    canvas.text(x, y, "tissue share of the context", 11, MUTED)
    steps, bar = 48, ASIDE - 36
    for i in range(steps):
        canvas.rect(x + i * bar / steps, y + 20, bar / steps + 0.5, 12, fill=share_colour((i + 0.5) / steps))
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        canvas.text(x + share * bar, y + 36, f"{100 * share:.0f}%", 10, MUTED, anchor=anchor)
    y += 66
    canvas.line([(x, y), (x + 24, y)], CONTOUR, 2.5)
    canvas.text(x + 34, y, "outline of the tissue", 11, MUTED, anchor="lm")
    _one_context(canvas, x + 3, y + 14, 18)
    canvas.text(x + 34, y + 23, "one context", 11, MUTED, anchor="lm")
    canvas.dot(x + 12, y + 46, 6.5, "#ffffff", FAINT)
    canvas.dot(x + 12, y + 46, 5, share_colour(0.5))
    canvas.text(x + 34, y + 46, "anchor: a context's centre", 11, MUTED, anchor="lm")
    canvas.text(x, y + 68, profile, 9, MUTED)
