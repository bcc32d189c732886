"""The picture of a slide's attention: the slide, an overlay per row of the attention, the most attended tiles.

Colours are percentiles, so that no single tile decides the scale; the legend has the raw weights. Not here: the numbers
(.attention), where tiles are (.painting), reading the slide (.slide_view).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.analysis.attention import Attention
from mil.analysis.painting import OPACITY, Frame, colour_of, overlay, paint
from mil.analysis.places import Tiles
from mil.analysis.tags import HEIGHT, place_tags
from mil.analysis.trained_run import JudgedSlide
from mil.judging.predictions import PROBABILITY
from pathray.draw.canvas import FAINT, INK, MUTED, Canvas

PANEL, MARGIN, HEAD, LEGEND, STRIP = 560.0, 28.0, 96.0, 74.0, 190.0
THUMB, GAP = 128.0, 14.0
MOST_ROWS = 4  # of the attention that are drawn
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """What a slide looks like: the picture `[h, w, 3]` of a frame, crops of the `top` tiles (none without the slide's
    file), and µm per level-0 pixel where known."""

    picture: Pixels
    frame: Frame
    top: npt.NDArray[np.int64]
    crops: Sequence[Pixels] = ()
    mpp: float | None = None
    blank: bool = False


def words_of(slide: JudgedSlide) -> str:
    """The line under the title: truth, prediction, and whose."""
    key = f"{PROBABILITY}{slide.predicted}"
    told = slide.predicted
    if key in slide.values:
        told += f", probability {slide.values[key]:.6f}"
        true = f"{PROBABILITY}{slide.truth}"
        if true != key and true in slide.values:
            told += f" (of {slide.truth}: {slide.values[true]:.6f})"
    return f"true: {slide.truth or 'unknown'}    predicted: {told}"


def model_of(slide: JudgedSlide) -> str:
    """The second line: whose prediction it is, and whose attention."""
    if not slide.others:
        return f"by the model of {slide.split}, which has not seen this patient"
    return f"mean of {len(slide.others) + 1} models that have not seen this patient; attention of one, {slide.split}"


def rows_to_draw(attention: Attention, slide: JudgedSlide) -> list[int]:
    """The mean of heads alone; of classes all, or the predicted and the true one first where there are many."""
    if not any(f"{PROBABILITY}{name}" in slide.values for name in attention.names):
        return [0]
    own = [attention.names.index(name) for name in (slide.predicted, slide.truth) if name in attention.names]
    return list(dict.fromkeys([*own, *range(len(attention.names))]))[:MOST_ROWS]


def draw_heatmap(slide: JudgedSlide, attention: Attention, tiles: Tiles, view: View, *, scale: float = 1.25) -> Pixels:
    """The whole picture: title, the slide, an overlay per row with its legend, the strip of tiles."""
    rows = rows_to_draw(attention, slide)
    unit = PANEL / max(view.frame.size)
    width, height = view.frame.size[0] * unit, view.frame.size[1] * unit
    step = max(width, 300.0) + MARGIN
    strip = STRIP if len(view.crops) else 0.0
    before = 0 if view.blank else 1  # panels to the left of the overlays
    across = max((len(rows) + before) * step + MARGIN, len(view.crops) * (THUMB + GAP) + 2 * MARGIN, 620.0)
    canvas = Canvas(across, HEAD + height + LEGEND + strip + MARGIN, scale)
    canvas.text(MARGIN, 18, slide.slide_id, 20, INK, bold=True)
    canvas.text(MARGIN, 48, words_of(slide), 14, INK)
    canvas.text(MARGIN, 70, model_of(slide) + ("; without the slide's file" if view.blank else ""), 11.5, MUTED)
    percentiles = attention.percentiles
    if not view.blank:
        _slide_panel(canvas, view, tiles, unit, (width, height))
    for i, row in enumerate(rows):
        left = MARGIN + (i + before) * step
        picture = overlay(view.picture, paint(view.frame, tiles, percentiles[row]), 0.9 if view.blank else OPACITY)
        canvas.picture(picture, left, HEAD, width, height)
        canvas.rect(left, HEAD, width, height, outline=FAINT)
        if view.blank and view.mpp:
            canvas.scale_bar(left + 8, HEAD + height - 8, view.mpp / (view.frame.scale[0] * unit), 0.3 * width)
        _legend(canvas, attention, row, (left, HEAD + height + 12), max(width, 300.0))
    if strip:
        _strip(canvas, attention, view, rows[0], HEAD + height + LEGEND)
    return canvas.to_picture()


def _slide_panel(canvas: Canvas, view: View, tiles: Tiles, unit: float, size: tuple[float, float]) -> None:
    """The slide with its most attended tiles framed and numbered."""
    width, height = size
    canvas.picture(view.picture, MARGIN, HEAD, width, height)
    canvas.rect(MARGIN, HEAD, width, height, outline=FAINT)
    _frame_tiles(canvas, unit * view.frame.edges(tiles)[view.top].astype(np.float64), (width, height))
    canvas.text(MARGIN, HEAD + height + 12, "the slide", 11, MUTED)
    if len(view.top):
        canvas.text(MARGIN, HEAD + height + 28, f"framed: the {len(view.top)} most attended tiles", 11, MUTED)
    if view.mpp:
        canvas.scale_bar(MARGIN + 8, HEAD + height - 8, view.mpp / (view.frame.scale[0] * unit), 0.3 * width)


def _frame_tiles(canvas: Canvas, edges: Floats, size: tuple[float, float]) -> None:
    """Tiles at `edges` `[K, 4]` of the slide's panel, numbered from 1; numbers are above all frames."""
    frames = [
        (MARGIN + x0, HEAD + y0, MARGIN + x0 + max(x1 - x0, 5.0), HEAD + y0 + max(x1 - x0, 5.0))
        for x0, y0, x1, _ in edges.tolist()
    ]
    for left, top, right, _ in frames:
        canvas.rect(left - 1, top - 1, right - left + 2, right - left + 2, outline="#ffffff", line=3)
        canvas.rect(left, top, right - left, right - left, outline=INK, line=1.5)
    widths = [8.0 + 6 * len(str(number)) for number in range(1, len(frames) + 1)]
    bounds = (MARGIN, HEAD, MARGIN + size[0], HEAD + size[1])
    for number, (x, y) in enumerate(place_tags(frames, widths, bounds), 1):
        canvas.rect(x, y, widths[number - 1], HEIGHT, fill=(255, 255, 255, 225), radius=2)
        canvas.text(x + 4, y + 1, str(number), 9, INK, bold=True)


def _legend(canvas: Canvas, attention: Attention, row: int, corner: tuple[float, float], width: float) -> None:
    """The colour bar with percentiles, and the raw weights at them."""
    x, y = corner
    weights, name = attention.weights[row], attention.names[row]
    title = name if name.startswith(("attention", "mean")) else f"attention for {name}"
    canvas.text(x, y, f"{title}, percentile of {weights.size:,} tiles", 11, MUTED)
    bar, steps = min(width, PANEL) - 40, 60
    for i in range(steps):
        colour = colour_of(100 * (i + 0.5) / steps)
        canvas.rect(x + 20 + i * bar / steps, y + 16, bar / steps + 0.5, 9, fill=colour)
    for p, anchor in ((0, "la"), (25, "ma"), (50, "ma"), (75, "ma"), (100, "ra")):
        at = x + 20 + bar * p / 100
        canvas.text(at, y + 27, f"{p}", 9, MUTED, anchor=anchor)
        canvas.text(at, y + 39, f"{np.quantile(weights, p / 100):.2g}", 9, INK, anchor=anchor)
    said = f"below: raw weights (even: {1 / weights.size:.2g}); spread over {attention.spread(row):.0%} of the tiles"
    canvas.text(x + 20, y + 51, said, 9, MUTED)


def _strip(canvas: Canvas, attention: Attention, view: View, row: int, top: float) -> None:
    """The most attended tiles, each with its number, raw weight and percentile."""
    name = attention.names[row]
    of = "" if name.startswith(("attention", "mean")) else f" for {name}"
    canvas.text(MARGIN, top + 4, f"Most attended tiles{of}, with their raw weights", 12, INK, bold=True)
    for i, (tile, crop) in enumerate(zip(view.top.tolist(), view.crops, strict=True)):
        x = MARGIN + i * (THUMB + GAP)
        canvas.picture(crop, x, top + 26, THUMB, THUMB)
        canvas.text(x, top + 26 + THUMB + 4, f"{i + 1}", 11, INK, bold=True)
        canvas.text(x + 20, top + 26 + THUMB + 5, f"{attention.weights[row, tile]:.3g}", 10, MUTED)
