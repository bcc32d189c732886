"""The last step of a preview: how context and targets become a loss, drawn with the sample's own pictures."""

from __future__ import annotations

import numpy as np

from ijepath.pictures.panels import colour, draw_tokens
from ijepath.pictures.sample import PreviewSample
from pathray.draw.canvas import CARD, INK, MUTED, PAPER, Canvas, blend

STUDENT, TEACHER, LOSS = "#0b6bcb", "#7a3db8", "#c2255c"
PARTS = 3


def draw_scheme(canvas: Canvas, sample: PreviewSample, box: tuple[float, float, float, float], part: int = 99) -> None:
    """Student, predictor and teacher in the box (x, y, width, height); parts: 1 student, 2 teacher, 3 the loss."""
    x, y, width, height = box
    unit = width / 458
    top, low = y + 60 * unit, y + height - 72 * unit
    _student(canvas, sample, x, top, unit)
    if part >= 2:
        _teacher(canvas, sample, x, low, unit)
    if part >= 3:
        _loss(canvas, sample, x, (top, low), unit)


def _student(canvas: Canvas, sample: PreviewSample, x: float, y: float, unit: float) -> None:
    side = 106 * unit
    draw_tokens(canvas, sample, (x, y - side / 2, side), 3)
    canvas.text(x + side / 2, y + side / 2 + 5 * unit, "context tokens", 10 * unit, MUTED, anchor="ma")
    canvas.arrow([(x + side + 4 * unit, y), (x + 128 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _module(canvas, x + 130 * unit, y, 88 * unit, ("Student", "encoder fθ"), STUDENT, unit)
    canvas.arrow([(x + 220 * unit, y), (x + 240 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _module(canvas, x + 242 * unit, y, 96 * unit, ("Predictor", "+ positions of T"), STUDENT, unit)
    canvas.arrow([(x + 340 * unit, y), (x + 360 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _vectors(canvas, sample, x + 362 * unit, y, "z", "predicted", unit)


def _teacher(canvas: Canvas, sample: PreviewSample, x: float, y: float, unit: float) -> None:
    count, whole = len(sample.targets), 106 * unit
    columns = int(np.ceil(np.sqrt(count)))
    gap = 3 * unit
    side = (whole - gap * (columns - 1)) / columns
    for k, target in enumerate(sample.targets):
        left, top = x + (k % columns) * (side + gap), y - whole / 2 + (k // columns) * (side + gap)
        canvas.picture(target, left, top, side, side)
        canvas.rect(left, top, side, side, outline=colour(k), line=2 * unit)
    canvas.text(x + whole / 2, y + whole / 2 + 5 * unit, "target crops", 10 * unit, MUTED, anchor="ma")
    canvas.arrow([(x + whole + 4 * unit, y), (x + 128 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _module(canvas, x + 130 * unit, y, 88 * unit, ("Teacher", "encoder f̄"), TEACHER, unit)
    canvas.arrow([(x + 220 * unit, y), (x + 240 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _module(canvas, x + 242 * unit, y, 96 * unit, ("LayerNorm", "no gradient"), TEACHER, unit)
    canvas.arrow([(x + 340 * unit, y), (x + 360 * unit, y)], INK, 1.6 * unit, 7 * unit)
    _vectors(canvas, sample, x + 362 * unit, y, "h", "observed", unit)


def _loss(canvas: Canvas, sample: PreviewSample, x: float, rows: tuple[float, float], unit: float) -> None:
    top, low = rows
    middle, center = (top + low) / 2, x + 410 * unit
    canvas.arrow([(center, top + 40 * unit), (center, middle - 20 * unit)], LOSS, 1.8 * unit, 7 * unit)
    canvas.arrow([(center, low - 40 * unit), (center, middle + 20 * unit)], LOSS, 1.8 * unit, 7 * unit)
    canvas.rect(center - 48 * unit, middle - 18 * unit, 96 * unit, 36 * unit, fill=LOSS, radius=6 * unit)
    canvas.text(center, middle - 6 * unit, "loss", 10 * unit, PAPER, anchor="mm")
    canvas.text(center, middle + 7 * unit, "SmoothL1(z, h)", 10.5 * unit, PAPER, bold=True, anchor="mm")
    ema = x + 174 * unit
    canvas.line([(ema, top + 26 * unit), (ema, middle - 12 * unit)], TEACHER, 1.6 * unit, 4 * unit)
    canvas.arrow([(ema, middle + 12 * unit), (ema, low - 26 * unit)], TEACHER, 1.6 * unit, 7 * unit)
    canvas.text(ema, middle, "moving average (EMA)", 10.5 * unit, TEACHER, bold=True, anchor="mm")


def _module(canvas: Canvas, x: float, y: float, width: float, names: tuple[str, str], tone: str, unit: float) -> None:
    height = 48 * unit
    canvas.rect(x, y - height / 2, width, height, fill=blend(tone, CARD, 0.86), outline=tone, line=1.6 * unit, radius=7)
    canvas.text(x + width / 2, y - 8 * unit, names[0], 12 * unit, INK, bold=True, anchor="mm")
    canvas.text(x + width / 2, y + 9 * unit, names[1], 9.5 * unit, MUTED, anchor="mm")


def _vectors(canvas: Canvas, sample: PreviewSample, x: float, y: float, name: str, what: str, unit: float) -> None:
    """One small feature vector per target, in the targets' colours."""
    count = len(sample.boxes)
    pitch = min(14 * unit, 56 * unit / count)
    for k in range(count):
        left = x + 14 * unit + k * pitch
        for cell in range(5):
            shade = blend(colour(k), "#ffffff", (0.05, 0.5, 0.2, 0.65, 0.35)[(cell + 2 * k) % 5])
            canvas.rect(left, y - 26 * unit + cell * 8 * unit, pitch * 0.75, 7 * unit, fill=shade)
    canvas.text(x + 42 * unit, y + 17 * unit, f"{name}  {what}", 10 * unit, MUTED, anchor="ma")
