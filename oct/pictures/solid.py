"""Draws the hidden tokens of a volume as a solid in oblique projection: front, top and right faces, far ones first.

x goes right, depth goes down, the slow axis goes into the picture. Only faces that nothing hidden covers are drawn. Not
here: masks themselves (oct.masks), pictures of pixels (oct.pictures.panels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import FAINT, MUTED, PAPER, Canvas, Point, blend

Corner = tuple[int, int, int]  # of a token, in tokens (z, y, x)
ANGLE = math.radians(35)  # of the slow axis in the picture
SHORTENED = 0.6  # of lengths along it
FACES = (  # the neighbour that would cover a face (z, y, x), its corners, its shade: share of white or ink
    ((-1, 0, 0), ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)), 0.0),
    ((0, -1, 0), ((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0)), 0.45),
    ((0, 0, 1), ((0, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 1)), -0.35),
)
SIDE, BELOW = 60.0, 22.0  # for the names of the axes
FOG = 0.45  # share of white at the far end of the slow axis
INK_SHADE = "#0b1220"
EDGES = (  # of the box, in its corners: far ones first
    ((1, 0, 0), (1, 1, 0)), ((1, 1, 0), (1, 1, 1)), ((0, 1, 0), (1, 1, 0)), ((1, 0, 0), (1, 0, 1)),
    ((1, 0, 1), (1, 1, 1)), ((0, 0, 0), (1, 0, 0)), ((0, 0, 1), (1, 0, 1)), ((0, 1, 1), (1, 1, 1)),
    ((0, 0, 0), (0, 0, 1)), ((0, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 1, 1)), ((0, 0, 1), (0, 1, 1)),
)  # fmt: skip


@dataclass(frozen=True)
class Projection:
    """Tokens → the picture. size: of a token along z, y, x in picture units; corner: of the box's front, upper left."""

    size: tuple[float, float, float]
    corner: Point

    @classmethod
    def of(cls, grid: tuple[int, int, int], proportions: tuple[float, float, float], x: float, y: float,
           width: float, height: float) -> Projection:  # fmt: skip
        """The largest box of `grid` tokens with sides as `proportions` inside a rectangle, at its upper left."""
        z, down, right = (n * p for n, p in zip(grid, proportions, strict=True))
        across, up = z * SHORTENED * math.cos(ANGLE), z * SHORTENED * math.sin(ANGLE)
        unit = min(width / (right + across), height / (down + up))
        dz, dy, dx = (p * unit for p in proportions)
        return cls((dz, dy, dx), (x, y + up * unit))

    def __call__(self, z: float, y: float, x: float) -> Point:
        dz, dy, dx = self.size
        back = z * dz * SHORTENED
        return self.corner[0] + x * dx + back * math.cos(ANGLE), self.corner[1] + y * dy - back * math.sin(ANGLE)


def solid_height(
    grid: tuple[int, int, int], proportions: tuple[float, float, float], width: float, height: float
) -> float:
    """What `draw_solid` takes of a rectangle `width` × `height`."""
    to_picture = Projection.of(grid, proportions, 0, 0, width - SIDE, height - BELOW)
    return to_picture(0, grid[1], 0)[1] + BELOW


def visible_faces(hidden: npt.NDArray[np.bool_]) -> Iterator[tuple[Corner, int]]:
    """(token, face of `FACES`) of every face of a hidden token that is not covered by a hidden neighbour, in the order
    in which they cover each other: from the far end, from below, from the left."""
    padded = np.pad(hidden, 1)
    open_faces = np.stack([hidden & ~_shifted(padded, beside) for beside, _, _ in FACES])
    nz, ny, nx = hidden.shape
    for z in range(nz - 1, -1, -1):
        for y in range(ny - 1, -1, -1):
            for x in range(nx):
                for face in np.flatnonzero(open_faces[:, z, y, x]).tolist():
                    yield (z, y, x), face


def _shifted(padded: npt.NDArray[np.bool_], beside: Corner) -> npt.NDArray[np.bool_]:
    """The neighbours of all tokens in one direction."""
    part = tuple(slice(1 + step, n - 1 + step) for step, n in zip(beside, padded.shape, strict=True))
    return padded[part]


def draw_solid(
    canvas: Canvas, hidden: npt.NDArray[np.bool_], proportions: tuple[float, float, float], x: float, y: float,
    width: float, height: float, colour: str,
) -> None:  # fmt: skip
    """Hidden tokens bool `[z, y, x]`, each with sides as `proportions`, in the rectangle; with the axes' names."""
    nz, ny, nx = hidden.shape
    to_picture = Projection.of((nz, ny, nx), proportions, x + 14, y, width - SIDE, height - BELOW)
    _draw_edges(canvas, to_picture, (nz, ny, nx), EDGES[:3])
    for (z, row, column), face in visible_faces(hidden):
        _, corners, shade = FACES[face]
        points = [to_picture(z + a, row + b, column + c) for a, b, c in corners]
        canvas.polygon(points, _shade(colour, shade, z / max(1, nz - 1)))
        canvas.line([*points, points[0]], (255, 255, 255, 90), 0.5)
    _draw_edges(canvas, to_picture, (nz, ny, nx), EDGES[3:])
    left, bottom = to_picture(0, ny, 0)
    right, _ = to_picture(0, ny, nx)
    canvas.text((left + right) / 2, bottom + 4, "along the B-scan", 9.5, MUTED, anchor="ma")
    deep = to_picture(nz / 2, ny, nx)
    canvas.text(deep[0] + 6, deep[1], "slow axis", 9.5, MUTED)
    canvas.arrow([(left - 7, bottom - 0.6 * (bottom - to_picture(0, 0, 0)[1])), (left - 7, bottom)], MUTED, 1, 5)
    canvas.text(left - 14, bottom + 4, "depth", 9.5, MUTED)


def _draw_edges(canvas: Canvas, to_picture: Projection, grid: Corner, edges: Sequence[tuple[Corner, Corner]]) -> None:
    for a, b in edges:
        ends = [to_picture(z * grid[0], y * grid[1], x * grid[2]) for z, y, x in (a, b)]
        canvas.line(ends, FAINT, 0.8)


def _shade(colour: str, shade: float, depth: float) -> tuple[int, int, int]:
    """The colour of a face: lighter from above, darker at the right, paler far away."""
    r, g, b = blend(colour, PAPER if shade > 0 else INK_SHADE, abs(shade))
    return blend(f"#{r:02x}{g:02x}{b:02x}", PAPER, FOG * depth)
