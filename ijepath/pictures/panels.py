"""The six steps of a preview as panels: slide, context, target boxes, high-resolution targets, tokens, prediction.

Each function draws one step's picture into a square (the last: a rectangle) of a canvas. `part` reveals it gradually.
Not here: the layout of the panels (ijepath.pictures.previews).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ijepath.pictures.sample import PreviewSample
from pathray.draw.canvas import ACCENTS, INK, MUTED, Canvas, with_alpha

ALL = 10**6
Square = tuple[float, float, float]  # x, y, side
Draw = Callable[[Canvas, PreviewSample, Square, int], None]
ANCHOR = "#d00000"
VEIL = (205, 211, 220)  # over what the context encoder does not see: darker than glass, paler than tissue
LEGEND = (
    ("C", "extent of a target"),
    ("R", "tokens it touches: hidden from the context"),
    ("T", "tokens the predictor fills, T ⊆ R"),
    ("", "not seen by the context encoder"),
)


@dataclass(frozen=True)
class Step:
    """One panel: title, picture, facts (label, value) and a sentence."""

    title: str
    draw: Draw
    facts: Callable[[PreviewSample], list[tuple[str, str]]]
    caption: Callable[[PreviewSample], str]
    parts: Callable[[PreviewSample], int] = lambda sample: 1


def colour(target: int) -> str:
    return ACCENTS[target % len(ACCENTS)]


def font_size(side: float) -> float:
    """Font size in a picture of this side."""
    return max(11.0, side / 42)


def draw_slide(canvas: Canvas, sample: PreviewSample, square: Square, part: int = ALL) -> None:
    """The whole slide with the context's outline."""
    x, y, side = square
    height, width = sample.thumbnail.shape[:2]
    scale = side / max(height, width)
    w, h = width * scale, height * scale
    left, top = x + (side - w) / 2, y + (side - h) / 2
    canvas.rect(x, y, side, side, fill="#ffffff")
    canvas.picture(sample.thumbnail, left, top, w, h)
    unit = w / sample.slide_size[0]
    place = sample.place
    box = left + place.left * unit, top + place.top * unit, place.side * unit
    if box[2] < 0.07 * side:  # a small box alone would be overlooked
        middle = box[0] + box[2] / 2, box[1] + box[2] / 2
        reach = max(box[2], 0.05 * side)
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            start = middle[0] + dx * reach * 0.8, middle[1] + dy * reach * 0.8
            canvas.line([start, (middle[0] + dx * reach * 1.7, middle[1] + dy * reach * 1.7)], ANCHOR, 2)
    canvas.rect(box[0] - 1, box[1] - 1, box[2] + 2, box[2] + 2, outline=ANCHOR, line=2)
    um = float(sample.slide["wsi_level0_spacing_mpp"]) / unit
    canvas.scale_bar(left + 6, top + h - 6, um, 0.3 * w, size=font_size(side))


def draw_context(canvas: Canvas, sample: PreviewSample, square: Square, part: int = ALL) -> None:
    """The context, with a veil over what is outside the tissue mask."""
    x, y, side = square
    canvas.picture(sample.context, x, y, side, side)
    cell = side / sample.tissue.shape[0]
    for row, line in enumerate(sample.tissue < 0.5):
        for start, stop in _runs(line):
            canvas.rect(x + start * cell, y + row * cell, (stop - start) * cell, cell, fill=(95, 107, 126, 70))
    canvas.rect(x, y, side, side, outline=ANCHOR, line=2)
    canvas.scale_bar(
        x + 6, y + side - 6, sample.context_mpp * sample.geometry.context_px / side, 0.35 * side, size=font_size(side)
    )


def context_view(canvas: Canvas, sample: PreviewSample, square: Square) -> Square:
    """The context's part of `square`, which leaves room for targets just outside the context; all of it without any."""
    x, y, whole = square
    geometry = sample.geometry
    if not geometry.margin:
        return square
    canvas.rect(x, y, whole, whole, fill="#e3e7ed")
    side = whole * geometry.grid / geometry.predictor_grid
    return x + (whole - side) / 2, y + (whole - side) / 2, side


def draw_boxes(canvas: Canvas, sample: PreviewSample, square: Square, part: int = ALL) -> None:
    """The target boxes in the context, or just outside it."""
    x, y, side = context_view(canvas, sample, square)
    canvas.picture(sample.context, x, y, side, side)
    unit = side / sample.geometry.context_px
    for k, (x0, y0, x1, y1) in enumerate(sample.boxes[:part].tolist()):
        box = x + x0 * unit, y + y0 * unit, (x1 - x0) * unit, (y1 - y0) * unit
        canvas.rect(*box, fill=with_alpha(colour(k), 0.06), outline=colour(k), line=max(2.0, side / 150))
        canvas.badge(box[0] + side / 26, box[1] + side / 26, str(k + 1), colour(k), side / 34)
    canvas.scale_bar(x + 6, y + side - 6, sample.context_mpp / unit, 0.35 * side, size=font_size(side))


def draw_targets(canvas: Canvas, sample: PreviewSample, square: Square, part: int = ALL) -> None:
    """The targets as the teacher sees them."""
    x, y, side = square
    columns = math.ceil(math.sqrt(len(sample.targets)))
    gap = side / 40
    cell = (side - gap * (columns - 1)) / columns
    for k, target in enumerate(sample.targets):
        left, top = x + (k % columns) * (cell + gap), y + (k // columns) * (cell + gap)
        if k >= part:
            canvas.rect(left, top, cell, cell, fill="#e3e7ed")
            continue
        height, width = target.shape[:2]
        w, h = cell * min(1, width / height), cell * min(1, height / width)
        canvas.picture(target, left, top, w, h)
        canvas.rect(left, top, w, h, outline=colour(k), line=max(2.0, side / 110))
        canvas.badge(left + side / 24, top + side / 24, str(k + 1), colour(k), side / 34)
        if k == 0:
            canvas.scale_bar(left + 6, top + h - 6, sample.target_mpp * width / w, 0.6 * w, size=font_size(side))


def draw_tokens(canvas: Canvas, sample: PreviewSample, square: Square, part: int = ALL) -> None:
    """Tokens: 1 hidden from the context (R), 2 what the context keeps, 3 what the predictor fills (T)."""
    x, y, side = context_view(canvas, sample, square)
    grid, geometry = sample.geometry.grid, sample.geometry
    shown = sample.context.astype(np.float32)
    if part >= 2:
        kept = np.zeros(grid * grid, bool)
        kept[sample.keep] = True
        veil = np.repeat(np.repeat(~kept.reshape(grid, grid), geometry.patch, 0), geometry.patch, 1)
        shown[veil] = 0.24 * shown[veil] + 0.76 * np.array(VEIL)
    canvas.picture(shown.astype(np.uint8), x, y, side, side)
    cell = side / grid
    for i in range(1, grid):
        canvas.line([(x + i * cell, y), (x + i * cell, y + side)], (255, 255, 255, 120), 0.6)
        canvas.line([(x, y + i * cell), (x + side, y + i * cell)], (255, 255, 255, 120), 0.6)
    unit = side / geometry.context_px
    for k, (column0, row0, column1, row1) in enumerate(sample.spans.tolist()):
        if part >= 3:
            for token in sample.predict[k].tolist():
                row, column = (int(v) - geometry.margin for v in divmod(token, geometry.predictor_grid))
                inner = x + column * cell + 0.08 * cell, y + row * cell + 0.08 * cell, 0.84 * cell, 0.84 * cell
                canvas.rect(*inner, fill=with_alpha(colour(k), 0.45))
        box = x + column0 * cell, y + row0 * cell, (column1 - column0) * cell, (row1 - row0) * cell
        canvas.frame(*box, colour(k), max(1.4, side / 240), side / 75)
        x0, y0, x1, y1 = sample.boxes[k].tolist()
        canvas.rect(
            x + x0 * unit, y + y0 * unit, (x1 - x0) * unit, (y1 - y0) * unit, outline=colour(k), line=side / 150
        )


def draw_legend(
    canvas: Canvas, x: float, y: float, width: float, size: float, rows: Sequence[tuple[str, str]] = LEGEND
) -> float:
    """Draw the legend of C, R, T and the veil; returns the y below it."""
    first, side = colour(0), size * 1.15
    for name, text in rows:
        if name == "C":
            canvas.rect(x, y, side, side, outline=first, line=2)
        elif name == "R":
            canvas.frame(x, y, side, side, first, 1.5, side / 5)
        else:
            canvas.rect(x, y, side, side, fill=with_alpha(first, 0.45) if name else VEIL)
        indent = x + side + 6
        if name:
            canvas.text(indent, y, name, size, INK, bold=True)
            indent += size * 1.1
        y = canvas.paragraph(indent, y, text, size, x + width - indent, MUTED, leading=1.3) + size * 0.35
    return y


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _um(px: float, mpp: float) -> str:
    return f"{px * mpp:g} µm"


def _spacing(mpp: float) -> str:
    """At least one decimal: 1.0 µm/px."""
    text = f"{mpp:.4g}"
    return f"{text if '.' in text else text + '.0'} µm/px"


def _slide_facts(sample: PreviewSample) -> list[tuple[str, str]]:
    width, height = sample.slide_size
    mpp = float(sample.slide["wsi_level0_spacing_mpp"])
    size = f"{width * mpp / 1000:.1f} × {height * mpp / 1000:.1f} mm"
    facts = [("slide", size), ("spacing", _spacing(mpp)), ("anchor", f"{sample.center[0]}, {sample.center[1]}")]
    return [*facts, ("stratum", str(sample.slide.get("stratum_id") or "all"))]


def _context_facts(sample: PreviewSample) -> list[tuple[str, str]]:
    side = sample.geometry.context_px
    facts = [("field", _um(side, sample.context_mpp)), ("spacing", _spacing(sample.context_mpp))]
    return [*facts, ("size", f"{side} × {side} px"), ("tissue", f"{100 * sample.tissue.mean():.0f}%")]


def _box_facts(sample: PreviewSample) -> list[tuple[str, str]]:
    height, width = sample.geometry.footprint
    low = 100 * sample.target_tissue.min()
    facts = [("targets", str(len(sample.boxes))), ("field", _um(width, sample.context_mpp))]
    return [*facts, ("in context", f"{width} × {height} px"), ("least tissue", f"{low:.0f}%")]


def _target_facts(sample: PreviewSample) -> list[tuple[str, str]]:
    (height, width), (rows, columns) = sample.geometry.crop, sample.geometry.teacher_grid
    facts = [("spacing", _spacing(sample.target_mpp)), ("size", f"{width} × {height} px")]
    ratio = sample.context_mpp / sample.target_mpp
    return [*facts, ("tokens", f"{columns} × {rows}"), ("finer by", f"{ratio:.3g}×")]


def _token_facts(sample: PreviewSample) -> list[tuple[str, str]]:
    total = sample.geometry.grid**2
    facts = [("grid", f"{sample.geometry.grid} × {sample.geometry.grid}"), ("hidden (R)", str(sample.hidden_tokens))]
    return [*facts, ("kept", f"{sample.keep.size} of {total}"), ("filled (T)", f"{sample.predict.shape[1]} each")]


STEPS = (
    Step("The slide, and one anchor", draw_slide, _slide_facts, lambda s: "Anchors are on a grid over the tissue."),
    Step(
        "Context at low resolution",
        draw_context,
        _context_facts,
        lambda s: "What the student sees: architecture. Grey: no tissue.",
    ),
    Step(
        "Targets drawn inside",
        draw_boxes,
        _box_facts,
        lambda s: "From (seed, position): new boxes in every pass.",
        lambda s: len(s.boxes),
    ),
    Step(
        "The same places at high resolution",
        draw_targets,
        _target_facts,
        lambda s: "What the teacher sees: nuclei.",
        lambda s: len(s.boxes),
    ),
    Step("No token of a target is seen", draw_tokens, _token_facts, lambda s: "", lambda s: 3),
)
