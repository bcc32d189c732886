"""Paints tissue: computes the amounts of haematoxylin, eosin and blood per pixel from anatomy and cells.

Stains are optical densities along their own colour vectors. It works strip by strip at any resolution, so memory does
not grow with the slide. Not here: colours (demo.scanner).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from demo import cells as kinds
from demo.anatomy import STEP, Anatomy
from demo.cells import Cells, join_cells
from demo.fields import Field, Window, ridge, smooth_noise, smoothstep, streaks, texture
from demo.stamps import stamps

MARGIN = 64  # cells up to this many pixels outside a strip are drawn


@dataclass
class Painting:
    """Everything needed to paint any part of one slide."""

    anatomy: Anatomy
    nuclei: Cells
    vacuoles: Cells
    red_cells: Cells
    membrane: Field  # distance to the border between epithelial cells, 2 µm grid
    shade: Field  # slow changes of section thickness
    mucin: Field
    retracted: Field  # where glands are detached from the stroma
    fibres: Field  # collagen, 1 µm grid
    bundles: Field  # of fibres, 2 µm grid
    grain: Field  # textures
    clumps: Field


def compose(anatomy: Anatomy, seed: int) -> Painting:
    """Place cells in the anatomy and prepare the textures."""
    rng = np.random.default_rng([seed, 2])
    makers = (kinds.stromal_nuclei, kinds.lymphocytes, kinds.epithelial_nuclei, kinds.tumour_nuclei)
    *others, epithelial, tumour = [make(anatomy, rng) for make in makers]
    shape = anatomy.tissue.shape
    return Painting(
        anatomy,
        join_cells([*others, epithelial, tumour]),
        kinds.vacuoles(anatomy, rng),
        kinds.red_cells(anatomy, rng),
        _membranes(anatomy, join_cells([epithelial, tumour])),
        1 + 0.07 * smooth_noise(rng, shape, 200) + 0.03 * smooth_noise(rng, shape, 40),
        smooth_noise(rng, shape, 25),
        smooth_noise(rng, shape, 70),
        *_collagen(anatomy, rng),
        texture(rng, (1.3, 1.3)),
        texture(rng, (2.0, 2.0)),
    )


def _collagen(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Field, Field]:
    """Fibres of about 2 µm and bundles of about 8 µm along the anatomy's directions; mean 0, variance 1."""
    from scipy.ndimage import gaussian_filter

    dy, dx = anatomy.fibre_y, anatomy.fibre_x
    coarse = gaussian_filter(rng.standard_normal(dy.shape, np.float32), 1.5, truncate=3)
    thin = [np.repeat(np.repeat(d, 2, 0), 2, 1) for d in (dy, dx)]
    fine = gaussian_filter(rng.standard_normal(thin[0].shape, np.float32), 0.7, truncate=3)
    return streaks(fine, *thin, reach=0.8), streaks(coarse, dy, dx, reach=1.1)


def _membranes(anatomy: Anatomy, epithelial: Cells) -> Field:
    """Distance (µm) to the walls between epithelial cells, a Voronoi tiling of their nuclei."""
    from scipy.spatial import cKDTree

    out = np.full(anatomy.gland.shape, 1e3, np.float32)
    where = np.argwhere((anatomy.gland > -2) & (anatomy.lumen < 2))
    if len(epithelial) < 2 or not len(where):
        return out
    tree = cKDTree(np.stack([epithelial.y, epithelial.x], 1))
    distance, _ = tree.query(where * STEP, k=2)
    out[where[:, 0], where[:, 1]] = (distance[:, 1] - distance[:, 0]) / 2
    return out


def paint(painting: Painting, mpp: float, top: int, left: int, height: int, width: int) -> tuple[Field, Field, Field]:
    """Haematoxylin, eosin and blood `[height, width]` of the pixels from (top, left) at `mpp`."""
    ys, xs = (np.arange(a, a + n) + 0.5 for a, n in ((top, height), (left, width)))
    window = Window(ys * mpp, xs * mpp, STEP)
    anatomy = painting.anatomy
    grain = window.tile(painting.grain, 0.5)
    gland, lumen = window.read(anatomy.gland), window.read(anatomy.lumen)
    blue, pink = _stroma(painting, window, grain, gland)
    _epithelium(painting, window, grain, gland, lumen, blue, pink)
    _fat(painting, window, blue, pink)
    _vessels(painting, window, blue, pink)
    _vacuoles(painting.vacuoles, painting.clumps, mpp, (top, left), (blue, pink))
    blood = np.zeros_like(pink)
    _red_cells(painting.red_cells, painting.clumps, mpp, (top, left), (pink, blood))
    edge = smoothstep(window.read(anatomy.tissue) + 0.8 * grain, 2.0) * window.read(painting.shade)
    blue *= edge
    pink *= edge
    blood *= edge
    _nuclei(painting.nuclei, painting.clumps, mpp, (top, left), (blue, pink))
    return blue, pink, blood


def _stroma(painting: Painting, window: Window, grain: Field, gland: Field) -> tuple[Field, Field]:
    """Collagen in wavy bundles, around nearby glands, with clefts where it is loose."""
    anatomy = painting.anatomy
    fine, coarse = window.read(painting.fibres, 2), window.read(painting.bundles)
    loose = window.read(anatomy.loose)
    pink = 0.57 + 0.12 * coarse + 0.19 * fine + 0.05 * grain
    blue = 0.11 + 0.03 * grain + 0.03 * fine
    gaps = smoothstep(coarse + 0.9 * fine + 0.1 * grain - 2.2 + 1.5 * loose, 1.3)
    solid = 1 - (0.45 + 0.5 * loose) * gaps
    follicle = smoothstep(window.read(anatomy.lymphoid), 12)
    solid += follicle * (0.45 - solid)
    blue += follicle * 0.22
    slit = ridge(gland + 2.2, 1.6) * smoothstep(window.read(painting.retracted) - 0.9, 0.6)
    solid *= 1 - 0.9 * slit
    pink *= solid
    blue *= solid
    return blue, np.maximum(pink, 0, out=pink)


def _epithelium(
    painting: Painting, window: Window, grain: Field, gland: Field, lumen: Field, blue: Field, pink: Field
) -> None:
    """Draw cytoplasm, cell borders, brush border, basement membrane and lumen content over the stroma."""
    anatomy = painting.anatomy
    cancer = smoothstep(window.read(anatomy.tumour), 6)
    inside, open_ = smoothstep(gland, 0.7), smoothstep(lumen + 0.4 * grain, 0.9)
    wall = ridge(window.read(painting.membrane), 0.7)
    base = np.exp(-np.maximum(gland, 0) / 9)
    brush = ridge(lumen + 1.4, 1.3)
    cytoplasm_pink = 0.37 + 0.06 * grain + 0.16 * wall + 0.22 * brush * (1 - cancer) + 0.05 * cancer
    cytoplasm_blue = 0.24 + 0.22 * base + 0.06 * grain + 0.09 * wall + 0.17 * cancer
    streak = window.read(painting.fibres, 2)
    wisps = smoothstep(window.read(painting.mucin) + 0.35 * streak - 0.7, 0.9)
    debris = smoothstep(window.read(painting.mucin) + 0.3 * streak + 0.2 * grain - 0.8, 0.6) * cancer
    cytoplasm_pink += open_ * (0.05 * wisps + (0.42 + 0.06 * grain) * debris - cytoplasm_pink)
    cytoplasm_blue += open_ * (0.06 * wisps + (0.12 + 0.06 * grain) * debris - cytoplasm_blue)
    pink += inside * (cytoplasm_pink - pink)
    blue += inside * (cytoplasm_blue - blue)
    pink += 0.16 * ridge(gland + 0.8, 0.9) * (1 - 0.7 * cancer)


def _fat(painting: Painting, window: Window, blue: Field, pink: Field) -> None:
    zone = smoothstep(window.read(painting.anatomy.fat), 2.0)
    if not zone.any():
        return
    wall = ridge(window.read(painting.anatomy.fat_cell), 1.0)
    pink += zone * (0.50 * wall - pink)
    blue += zone * (0.10 * wall - blue)


def _vessels(painting: Painting, window: Window, blue: Field, pink: Field) -> None:
    level = window.read(painting.anatomy.vessel)
    hollow = smoothstep(level, 0.8)
    pink += 0.30 * ridge(level + 2.5, 2.4)
    pink *= 1 - 0.97 * hollow
    blue *= 1 - 0.97 * hollow


def _visible_cells(
    cells: Cells, clumps: Field, mpp: float, corner: tuple[int, int], shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, slice], Field, Field, float]]:
    """(box, coverage, shade, stain) of every cell that touches the picture, cropped to the picture."""
    top, left = corner
    y, x = cells.y / mpp - top, cells.x / mpp - left
    seen = (y > -MARGIN) & (y < shape[0] + MARGIN) & (x > -MARGIN) & (x < shape[1] + MARGIN)
    for part, coverage, shade, place in stamps(cells.take(np.flatnonzero(seen)), mpp, clumps):
        size, place = coverage.shape[1], place - np.array([top, left])
        first, last = np.maximum(-place, 0), np.minimum(np.array(shape) - place, size)
        rows = zip(place.tolist(), first.tolist(), last.tolist(), part.stain.tolist(), strict=True)
        for i, ((py, px), (ay, ax), (by, bx), stain) in enumerate(rows):
            if by > ay and bx > ax:
                box = slice(py + ay, py + by), slice(px + ax, px + bx)
                yield box, coverage[i, ay:by, ax:bx], shade[i, ay:by, ax:bx], stain


def _nuclei(cells: Cells, clumps: Field, mpp: float, corner: tuple[int, int], maps: tuple[Field, Field]) -> None:
    """Draw nuclei, which cover most of what is below them; overlapping nuclei are darker."""
    blue, pink = maps
    for box, coverage, shade, stain in _visible_cells(cells, clumps, mpp, corner, blue.shape):
        under = blue[box]
        np.maximum(under, coverage * (shade * stain) + 0.22 * under, out=under)
        pink[box] *= 1 - 0.35 * coverage


def _vacuoles(cells: Cells, clumps: Field, mpp: float, corner: tuple[int, int], maps: tuple[Field, Field]) -> None:
    """Draw mucin, which is washed out: pale and slightly blue, with a thin remaining wall."""
    blue, pink = maps
    for box, coverage, shade, _ in _visible_cells(cells, clumps, mpp, corner, blue.shape):
        soft = coverage * 0.86
        blue[box] += soft * (0.10 + 0.08 * shade - blue[box])
        pink[box] += soft * (0.05 + 0.07 * shade - pink[box])


def _red_cells(cells: Cells, clumps: Field, mpp: float, corner: tuple[int, int], maps: tuple[Field, Field]) -> None:
    pink, blood = maps
    for box, coverage, _, stain in _visible_cells(cells, clumps, mpp, corner, blood.shape):
        np.maximum(blood[box], coverage * stain, out=blood[box])
        pink[box] *= 1 - 0.6 * coverage
