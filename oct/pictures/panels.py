"""Draws one plane of a volume on a canvas: at its true proportions, with a scale bar below and lines where others are.

Where an axis has no known spacing, or would be too thin to see, the panel says so. Not here: which planes
(oct.pictures.views), the page around them (oct.pictures.slides).
"""

from __future__ import annotations

from dataclasses import dataclass

from oct.pictures.views import Plane
from pathray.draw.canvas import FAINT, INK, MUTED, Canvas, Picture, length_label, round_length

OUTSIDE = (214, 220, 228)  # where a grid holds no image
THINNEST = 16.0  # units: what would be thinner is enlarged, and the panel says how much
FOOT = 26.0  # below a plane: the scale bar and what is not to scale
UPRIGHT = 72.0  # left free at the right for a bar along the height
BLOCKS = 3  # samples that are enlarged more often than this are drawn as blocks
BAR_SHARE = 0.45  # the longest bar, of a plane's width


@dataclass(frozen=True)
class Fit:
    """Size of a plane on the canvas; units per mm along its width (None: not known); what is not to scale."""

    width: float
    height: float
    units_per_mm: float | None
    note: str = ""


def fit_plane(plane: Plane, width: float, height: float) -> Fit:
    """The largest size within `width` × `height` units at the plane's own proportions in mm."""
    h_mm, w_mm = plane.size_mm
    rows, columns = plane.greys.shape
    if h_mm is not None and w_mm is not None:
        unit = min(width / w_mm, height / h_mm)
        return _thick(plane, w_mm * unit, h_mm * unit, unit)
    if h_mm is None and w_mm is None:
        unit = min(width / columns, height / rows)
        return Fit(max(columns * unit, THINNEST), max(rows * unit, THINNEST), None, "no spacing known: not to scale")
    if w_mm is not None:
        return Fit(width, min(height, width / 2), width / w_mm, f"{plane.axes[0]}: no spacing known, not to scale")
    return Fit(min(width - UPRIGHT, height), height, None, f"{plane.axes[1]}: no spacing known, not to scale")


def _thick(plane: Plane, width: float, height: float, unit: float) -> Fit:
    if height < THINNEST:
        return Fit(width, THINNEST, unit, f"{plane.axes[0]} enlarged ×{THINNEST / height:.2g}")
    if width < THINNEST:
        return Fit(THINNEST, height, None, f"{plane.axes[1]} enlarged ×{THINNEST / width:.2g}")
    return Fit(width, height, unit)


def draw_plane(
    canvas: Canvas, plane: Plane, x: float, y: float, width: float, height: float, *, title: str, colour: str = ""
) -> tuple[float, float, Fit]:
    """Draw title, plane and scale bar in the box; returns the plane's corner and its size.

    colour: of the title's mark, the same as that of the line in the en-face projection.
    """
    if colour:
        canvas.rect(x, y + 2, 10, 10, fill=colour, radius=2)
    canvas.text(x + (16 if colour else 0), y, title, 11.5, INK, bold=True)
    top = y + 20
    fit = fit_plane(plane, width, height - 20 - FOOT)
    draw_greys(canvas, plane.to_pixels(OUTSIDE), x, top, fit)
    canvas.rect(x, top, fit.width, fit.height, outline=colour or FAINT, line=1.5)
    draw_foot(canvas, fit, plane, x, top + fit.height, width)
    return x, top, fit


def draw_greys(canvas: Canvas, pixels: Picture, x: float, y: float, fit: Fit) -> None:
    """The pixels `[h, w, 3]` at that size. Few samples become blocks: interpolation would ring at their edges."""
    wanted = fit.height * 2 * canvas.scale, fit.width * 2 * canvas.scale
    rows, columns = (max(1, round(n / have)) for n, have in zip(wanted, pixels.shape[:2], strict=True))
    blocks = pixels.repeat(rows if rows > BLOCKS else 1, axis=0).repeat(columns if columns > BLOCKS else 1, axis=1)
    canvas.picture(blocks, x, y, fit.width, fit.height)


def draw_foot(canvas: Canvas, fit: Fit, plane: Plane, x: float, y: float, width: float) -> None:
    """The scale bar, or why there is none, below a plane that ends at `y`."""
    at = x
    if fit.units_per_mm is not None:
        mm = round_length(max(fit.width, 40.0) * BAR_SHARE / fit.units_per_mm)
        length, label = mm * fit.units_per_mm, length_label(mm * 1000)
        canvas.rect(x, y + 8, length, 3, fill=INK)
        canvas.text(x + length + 6, y + 3, label, 10.5, INK, bold=True)
        at += length + 12 + canvas.text_width(label, 10.5, bold=True)
    elif plane.size_mm[0] is not None:
        draw_upright_bar(canvas, fit, plane.size_mm[0], x, y)
    if not fit.note:
        return
    if at + canvas.text_width(fit.note, 10) <= x + width or at == x:
        canvas.text(at, y + 4, fit.note, 10, MUTED)
    else:
        canvas.text(x, y + 16, fit.note, 10, MUTED)


def draw_upright_bar(canvas: Canvas, fit: Fit, height_mm: float, x: float, y: float) -> None:
    """A bar along the height, at the right of a plane that ends at `y`."""
    unit = fit.height / height_mm
    mm = round_length(fit.height * BAR_SHARE / unit)
    length, left = mm * unit, x + fit.width + 16
    canvas.rect(left, y - length, 3, length, fill=INK)
    canvas.text(left + 8, y - length / 2, length_label(mm * 1000), 10.5, INK, bold=True, anchor="lm")
