"""Places cells: nuclei, goblet vacuoles and red blood cells as points with size and direction.

Cells are packed randomly over the anatomy. Not here: drawing them (demo.stamps).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from demo.anatomy import STEP, Anatomy
from demo.fields import Field, sample, scatter, smooth_noise, thin_out

Floats = npt.NDArray[np.float32]


@dataclass
class Cells:
    """Ellipses: one array `[N]` per property. Lengths in µm, angles in radians (from the y axis to the long axis)."""

    y: Floats
    x: Floats
    long: Floats  # half axes
    short: Floats
    angle: Floats
    stain: Floats  # haematoxylin of a nucleus; eosin of a red blood cell; unused for a vacuole
    clumps: Floats  # contrast of the chromatin
    rim: Floats  # extra darkness of the membrane
    nucleolus: Floats  # 0 or 1
    seed: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: npt.NDArray[np.generic]) -> Cells:
        return Cells(*(getattr(self, f.name)[which] for f in fields(self)))


def join_cells(parts: list[Cells]) -> Cells:
    return Cells(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Cells)))


def _cells(
    rng: np.random.Generator,
    points: npt.NDArray[np.float64],
    size: tuple[float, float],
    spread: float,
    angle: npt.ArrayLike,
    stain: tuple[float, float],
    *,
    clumps: float = 0.25,
    rim: float = 0.15,
    nucleoli: float = 0.0,
) -> Cells:
    n = len(points)
    scale = np.exp(rng.normal(0, spread, n))
    shape = np.exp(rng.normal(0, spread * 0.7, n))
    values = (
        points[:, 0],
        points[:, 1],
        size[0] * scale * shape,
        size[1] * scale / shape,
        np.broadcast_to(angle, n),
        np.maximum(rng.normal(*stain, n), 0.3 * stain[0]),
        np.full(n, clumps),
        np.full(n, rim),
        rng.random(n) < nucleoli,
    )
    return Cells(*(np.asarray(v, np.float32) for v in values), rng.integers(0, 2**32, n, np.uint32))


def _scatter_apart(rng: np.random.Generator, density: Field, distance: float) -> npt.NDArray[np.float64]:
    """Points at least `distance` µm apart, from `density` candidates per µm²."""
    points = scatter(rng, density * np.float32(STEP**2), STEP)
    return points[thin_out(points, distance, rng)]


def _normal_angle(distance: Field, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The direction of increasing `distance` at the points, as an angle from the y axis."""
    dy, dx = np.gradient(distance)
    return np.arctan2(sample(dx, points, STEP), sample(dy, points, STEP))


def epithelial_nuclei(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """A palisade at the base of benign glands."""
    organ, depth = anatomy.organ, anatomy.gland
    base = organ.nucleus[0] + 1.6
    band = (np.abs(depth - base) < 1.7) & (anatomy.tumour <= 0) & (anatomy.lumen < -3)
    points = _scatter_apart(rng, band * np.float32(0.45), organ.nuclear_spacing)
    points += rng.normal(0, 0.5, points.shape)
    angle = _normal_angle(depth, points) + rng.normal(0, 0.15, len(points))
    return _cells(rng, points, organ.nucleus, 0.09, angle, (1.45, 0.16), clumps=0.22, rim=0.2, nucleoli=0.1)


def tumour_nuclei(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """Large, crowded, uneven nuclei in several layers, some with a nucleolus, few in division."""
    inside = (anatomy.gland > 4.5) & (anatomy.lumen < -4.5) & (anatomy.tumour > 0)
    points = _scatter_apart(rng, inside * np.float32(0.10), 7.3)
    angle = _normal_angle(anatomy.gland, points) + rng.normal(0, 0.5, len(points))
    dark = rng.random(len(points)) < 0.22
    pale = _cells(
        rng, points[~dark], (5.6, 4.1), 0.17, angle[~dark], (1.12, 0.18), clumps=0.38, rim=0.45, nucleoli=0.55
    )
    deep = _cells(rng, points[dark], (5.2, 3.3), 0.22, angle[dark], (1.85, 0.2), clumps=0.25, rim=0.1)
    return join_cells([pale, deep])


def stromal_nuclei(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """Spindle nuclei of fibroblasts along the fibres, and endothelium around vessels."""
    stroma = (anatomy.stroma > 3) & (anatomy.lymphoid < 5)
    per_um2 = anatomy.organ.fibroblasts * 1e-6 * np.where(anatomy.tumour > 0, 1.5, 1.0)
    points = _scatter_apart(rng, (stroma * per_um2).astype(np.float32), 6)
    fibre = sample(anatomy.fibre_x, points, STEP), sample(anatomy.fibre_y, points, STEP)
    angle = np.arctan2(*fibre) + rng.normal(0, 0.18, len(points))
    spindle = _cells(rng, points, (7.2, 1.75), 0.22, angle, (1.25, 0.25), clumps=0.15, rim=0.1)
    wall = np.abs(anatomy.vessel + 2.0) < 1.2
    points = _scatter_apart(rng, wall * np.float32(0.06), 12)
    angle = _normal_angle(anatomy.vessel, points) + np.pi / 2
    return join_cells([spindle, _cells(rng, points, (5.2, 1.5), 0.15, angle, (1.5, 0.2), clumps=0.1)])


def lymphocytes(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """Small, dark, round nuclei: in clouds in the stroma, packed in follicles, and paler in follicle centres."""
    n = anatomy.tissue.shape
    cloud = np.exp(1.1 * smooth_noise(rng, n, 45) - 0.6)
    front = 1 + 5 * np.exp(-np.square(anatomy.tumour / 70))
    stroma = (anatomy.stroma > 3.5) * anatomy.organ.lymphocytes * 1e-6 * cloud * front
    follicle = (anatomy.lymphoid > 0) & (anatomy.tissue > 5) & (anatomy.vessel < -4)
    halo = np.exp(np.minimum(anatomy.lymphoid, 0) / 18) * 0.012 * (anatomy.stroma > 3.5)
    density = np.where(follicle, 0.055, np.clip(stroma + halo, 0, 0.02)).astype(np.float32)
    points = _scatter_apart(rng, density, 5.4)
    center = sample(anatomy.lymphoid, points, STEP) > 75
    angle = rng.uniform(0, np.pi, len(points))
    small = _cells(rng, points[~center], (3.1, 2.8), 0.10, angle[~center], (1.75, 0.2), clumps=0.2, rim=0.05)
    large = _cells(rng, points[center], (4.1, 3.5), 0.16, angle[center], (1.05, 0.2), clumps=0.4, rim=0.35)
    return join_cells([small, large])


def vacuoles(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """Mucin of goblet cells: pale drops between the nuclei and the lumen, long axis across the epithelium."""
    organ = anatomy.organ
    if not organ.goblets:
        return _cells(rng, np.empty((0, 2)), (1, 1), 0.1, 0, (1, 0))
    low, high = 2 * organ.nucleus[0] + 6, organ.epithelium - 4
    rich = smooth_noise(rng, anatomy.gland.shape, 60) > -1.2
    band = (anatomy.gland > low) & (anatomy.gland < high) & (anatomy.tumour <= 0) & (anatomy.lumen < -4) & rich
    points = _scatter_apart(rng, band * np.float32(0.08 * organ.goblets), 8.2)
    angle = _normal_angle(anatomy.gland, points)
    return _cells(rng, points, (6.6, 4.6), 0.13, angle, (1, 0))


def red_cells(anatomy: Anatomy, rng: np.random.Generator) -> Cells:
    """Erythrocytes in vessels, in varying density, and a few outside."""
    filled = np.clip(0.8 + 0.7 * smooth_noise(rng, anatomy.vessel.shape, 90), 0.02, 1)
    density = (anatomy.vessel > 1.5) * 0.06 * filled + (anatomy.stroma > 8) * 6e-6
    points = _scatter_apart(rng, density.astype(np.float32), 5.2)
    angle = rng.uniform(0, np.pi, len(points))
    return _cells(rng, points, (3.3, 2.8), 0.09, angle, (0.85, 0.1))
