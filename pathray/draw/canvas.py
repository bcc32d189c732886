"""A drawing surface for pictures that end up on slides: text, images, boxes, arrows, scale bars. No science, no files.

Coordinates are layout units, one pixel each at scale 1; everything is drawn larger and reduced at the end, so that
lines and letters are smooth at any scale. Charts are pathray.draw.charts'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Colour = str | tuple[int, int, int] | tuple[int, int, int, int]
Point = tuple[float, float]

INK, MUTED, FAINT, PAPER, CARD = "#1b2333", "#5f6b7e", "#c9cfd8", "#ffffff", "#f4f6f9"
ACCENTS = ("#0b6bcb", "#0a9d6c", "#e8860c", "#3d2c8d", "#00a9b7", "#8a6d00", "#111827", "#5b8c00")
SUPERSAMPLING = 2


class Canvas:
    """A picture of `width` × `height` layout units, `scale` pixels each."""

    def __init__(self, width: float, height: float, scale: float = 1.0, paper: Colour = PAPER) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height, self.scale = width, height, scale
        self._zoom = scale * SUPERSAMPLING
        self.image = Image.new("RGB", (self._px(width), self._px(height)), paper)
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def to_picture(self) -> Picture:
        """The picture `[height · scale, width · scale, 3]`."""
        from PIL import Image

        size = round(self.width * self.scale), round(self.height * self.scale)
        return np.asarray(self.image.resize(size, Image.Resampling.BOX))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: Colour = INK,
        *,
        bold: bool = False,
        anchor: str = "la",
    ) -> None:
        """One line; `anchor` as Pillow's: l, m or r, then a (ascender), m or s (baseline)."""
        self._draw.text((x * self._zoom, y * self._zoom), text, colour, _font(size * self._zoom, bold), anchor)

    def paragraph(
        self, x: float, y: float, text: str, size: float, width: float, colour: Colour = MUTED, *, leading: float = 1.4
    ) -> float:
        """Text broken at spaces to `width`; returns the y below it."""
        for line in self._lines(text, size, width):
            self.text(x, y, line, size, colour)
            y += size * leading
        return y

    def text_width(self, text: str, size: float, *, bold: bool = False) -> float:
        return float(_font(size * self._zoom, bold).getlength(text)) / self._zoom

    def picture(self, pixels: Picture, x: float, y: float, width: float, height: float, *, smooth: bool = True) -> None:
        """An image `[h, w, 3]` stretched into the box."""
        from PIL import Image

        box = self._box(x, y, width, height)
        kind = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        size = box[2] - box[0], box[3] - box[1]
        self.image.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, kind), box[:2])

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: Colour | None = None,
        outline: Colour | None = None,
        line: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        """A box, its outline drawn inside. Fills may have an alpha."""
        w = max(1, self._px(line)) if outline else 0
        x0, y0, x1, y1 = self._box(x, y, width, height)
        if x1 > x0 and y1 > y0:
            self._draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), self._px(radius), fill, outline, w)

    def line(self, points: Sequence[Point], colour: Colour = INK, width: float = 1.5, dash: float = 0.0) -> None:
        """A polyline; `dash` > 0: dashes of that length with gaps of the same."""
        for a, b in zip(points, points[1:], strict=False):
            for start, end in _dashes(a, b, dash):
                scaled = [(px * self._zoom, py * self._zoom) for px, py in (start, end)]
                self._draw.line(scaled, colour, max(1, self._px(width)))

    def frame(
        self, x: float, y: float, width: float, height: float, colour: Colour, line: float = 1.5, dash: float = 4.0
    ) -> None:
        """A dashed rectangle."""
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        self.line(corners, colour, line, dash)

    def arrow(self, points: Sequence[Point], colour: Colour = INK, width: float = 1.8, head: float = 8.0) -> None:
        """A polyline with a filled head at its last point."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        self.line([*points[:-1], (x1 - dx * head * 0.8, y1 - dy * head * 0.8)], colour, width)
        side = head * 0.42
        tip = [(x1, y1), (x1 - dx * head - dy * side, y1 - dy * head + dx * side)]
        tip.append((x1 - dx * head + dy * side, y1 - dy * head - dx * side))
        self.polygon(tip, colour)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self._draw.polygon([(x * self._zoom, y * self._zoom) for x, y in points], fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None) -> None:
        box = [(v + d) * self._zoom for d in (-radius, radius) for v in (x, y)]
        self._draw.ellipse(box, fill, outline, max(1, self._px(radius * 0.25)) if outline else 0)

    def badge(self, x: float, y: float, text: str, fill: Colour = INK, radius: float = 11.0) -> None:
        """A filled disc with a short white text, its centre at (x, y)."""
        self.dot(x, y, radius, fill)
        self.text(x, y, text, radius * 1.1, PAPER, bold=True, anchor="mm")

    def scale_bar(self, x: float, y: float, um_per_unit: float, longest: float, *, size: float = 11.0) -> None:
        """A bar of a round length of at most `longest` units on a pale plate, its lower left corner at (x, y)."""
        um = round_length(longest * um_per_unit)
        length, label = um / um_per_unit, length_label(um)
        plate = max(length, self.text_width(label, size, bold=True)) + 12
        self.rect(x, y - size - 14, plate, size + 14, fill=(255, 255, 255, 220), radius=3)
        self.text(x + plate / 2, y - 10, label, size, INK, bold=True, anchor="ms")
        self.rect(x + (plate - length) / 2, y - 7, length, 3, fill=INK)

    def _lines(self, text: str, size: float, width: float) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.text_width(longer, size) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def _px(self, units: float) -> int:
        return round(units * self._zoom)

    def _box(self, x: float, y: float, width: float, height: float) -> tuple[int, int, int, int]:
        return self._px(x), self._px(y), self._px(x + width), self._px(y + height)


def round_length(longest: float) -> float:
    """The largest of 1, 2, 5 × 10^k that is at most `longest`.

    >>> round_length(130), round_length(0.9)
    (100.0, 0.5)
    """
    decade = 10.0 ** math.floor(math.log10(longest))
    return float(max(step * decade for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9)))


def length_label(um: float) -> str:
    """
    >>> length_label(500), length_label(2000)
    ('500 µm', '2 mm')
    """
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def blend(colour: str, other: str, share: float) -> tuple[int, int, int]:
    """`share` of `other` (#rrggbb) in `colour`.

    >>> blend("#000000", "#ffffff", 0.5)
    (128, 128, 128)
    """
    a, b = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (colour, other))
    r, g, bl = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return r, g, bl


def with_alpha(colour: str, alpha: float) -> tuple[int, int, int, int]:
    """A colour (#rrggbb) with an alpha between 0 and 1."""
    return (*blend(colour, colour, 0.0), round(alpha * 255))


def _dashes(a: Point, b: Point, dash: float) -> list[tuple[Point, Point]]:
    length = math.hypot(b[0] - a[0], b[1] - a[1])
    if dash <= 0 or length <= dash:
        return [(a, b)]
    count = max(1, round((length / dash + 1) / 2))  # dashes at both ends, gaps between
    step = length / (2 * count - 1)

    def at(t: float) -> Point:
        return a[0] + (b[0] - a[0]) * t / length, a[1] + (b[1] - a[1]) * t / length

    return [(at(2 * i * step), at((2 * i + 1) * step)) for i in range(count)]


@lru_cache(maxsize=128)
def _font(size: float, bold: bool) -> Any:
    """DejaVu Sans as matplotlib ships it: the same letters on every machine, µ, ×, ⊆ and Greek among them."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
