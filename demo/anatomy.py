"""The anatomy of one piece of tissue: zones, glands, lumina, vessels and fat, as distances on a 2 µm grid.

Every grid holds a signed distance in µm (positive inside) or a value between 0 and 1; demo.fields.Window reads it at
any resolution. Not here: cells (demo.cells), their appearance (demo.tissue_painter).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.fields import Field, sample, scatter, smooth_noise, thin_out
from demo.organs import Organ

STEP = 2.0  # µm per grid cell
BACKGROUND, STROMA, BENIGN, TUMOUR, LYMPHOID, FAT = range(6)
ZONES = ("background", "stroma", "benign", "tumour", "lymphoid", "fat")


@dataclass
class Anatomy:
    """Grids `[h, w]` float32 at `STEP` µm. Signed distances are in µm, positive inside."""

    organ: Organ
    tissue: Field
    gland: Field  # epithelium and its lumen
    lumen: Field
    tumour: Field
    lymphoid: Field
    fat: Field
    vessel: Field  # the lumen of a vessel
    fat_cell: Field  # distance to the nearest membrane of a fat cell
    around: Field  # distance to the nearest gland or vessel
    fibre_y: Field  # direction of the collagen, a unit vector without a meaningful sign
    fibre_x: Field
    loose: Field  # 0 dense collagen … 1 loose stroma

    @property
    def epithelium(self) -> Field:
        return np.minimum(self.gland, -self.lumen)

    @property
    def stroma(self) -> Field:
        """Inside the tissue and outside everything else."""
        return np.minimum.reduce([self.tissue, -self.gland, -self.vessel - 4, -self.fat])

    @property
    def zone(self) -> np.ndarray:
        """The zone of each cell (index into ZONES), uint8, as a pathologist would outline it."""
        near_gland = self.around < 70
        zone = np.where(near_gland, BENIGN, STROMA).astype(np.uint8)
        for level, name in ((self.fat, FAT), (self.tumour, TUMOUR), (self.lymphoid, LYMPHOID)):
            zone[level > 0] = name
        zone[self.tissue <= 0] = BACKGROUND
        return zone


def grow(organ: Organ, seed: int, size_um: float, *, tumour_share: float, pieces: int = 1) -> Anatomy:
    """The anatomy of a square slide of `size_um`, with about `tumour_share` of the tissue as tumour."""
    rng = np.random.default_rng([seed, 1])
    n = round(size_um / STEP)
    tissue = _outline(rng, n, pieces)
    tumour = _tumour(rng, n, tissue, tumour_share)
    lymphoid = _lymphoid(rng, n, np.minimum(tissue, -np.abs(tumour)) if tumour_share else tissue)
    fat, fat_cell = _fat_cells(rng, _fat(rng, n, organ, tumour, lymphoid, tissue), tissue)
    free = np.minimum.reduce([-tumour - 10, -lymphoid, -fat, tissue - 12])
    level = np.maximum(_benign_glands(rng, n, organ, free), _tumour_glands(rng, n, np.minimum(tumour, tissue - 8)))
    gland = signed_distance(np.minimum.reduce([level, -lymphoid, -fat, tissue - 6]))
    lumen = _lumen(rng, n, organ, gland, tumour)
    vessel = _vessels(rng, n, np.minimum.reduce([tissue, -gland, -lymphoid, -fat]) - 8)
    around = _smooth(-signed_distance(np.maximum(gland, vessel + 6)), 3)
    loose = np.clip(organ.looseness + 0.16 * smooth_noise(rng, (n, n), 110), 0, 1)
    loose = np.where(tumour > 0, np.clip(loose * 0.6 + 0.15, 0, 1), loose)
    return Anatomy(
        organ,
        tissue,
        gland,
        lumen,
        tumour,
        lymphoid,
        fat,
        vessel,
        fat_cell,
        around,
        *_fibres(rng, around),
        loose.astype(np.float32),
    )


def signed_distance(level: Field) -> Field:
    """Distance (µm) to the contour level = 0, positive where level > 0, smoothed by one cell to avoid staircases."""
    from scipy.ndimage import distance_transform_edt

    inside = level > 0
    if not inside.any():
        return np.full(level.shape, -1e3, np.float32)
    if inside.all():
        return np.full(level.shape, 1e3, np.float32)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return _smooth(((distance - np.sign(distance) * 0.5) * STEP).astype(np.float32), 1)


def _smooth(grid: Field, sigma: float) -> Field:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(grid, sigma, mode="nearest", truncate=3)


def _axes(n: int) -> tuple[Field, Field]:
    um = (np.arange(n) * STEP).astype(np.float32)
    return um[:, None], um[None, :]


def _outline(rng: np.random.Generator, n: int, pieces: int) -> Field:
    """One large piece of tissue with a ragged edge, or two side by side."""
    y, x = _axes(n)
    size, level = n * STEP, np.full((n, n), -1e3, np.float32)
    for k in range(pieces):
        center_x = size * ((k + 0.5) / pieces + rng.uniform(-0.02, 0.02))
        half_y, half_x = size * rng.uniform(0.43, 0.47), size * rng.uniform(0.40, 0.44) / pieces
        turn = rng.uniform(-0.25, 0.25) / pieces
        dy, dx = y - size / 2, x - center_x
        p, q = (dy + turn * dx) / half_y, (dx - turn * dy) / half_x
        radius = (np.abs(p) ** 2.6 + np.abs(q) ** 2.6) ** (1 / 2.6)
        level = np.maximum(level, (1 - radius) * min(half_x, half_y))
    level = level + 0.04 * size / pieces * smooth_noise(rng, (n, n), 0.14 * n) + 9 * smooth_noise(rng, (n, n), 30)
    glass = np.minimum(np.minimum(y, size - y), np.minimum(x, size - x)) - 0.02 * size
    return signed_distance(
        np.minimum(level + 3 * smooth_noise(rng, (n, n), 8), glass - 8 * smooth_noise(rng, (n, n), 40))
    )


def _tumour(rng: np.random.Generator, n: int, tissue: Field, share: float) -> Field:
    """A tumour that pushes in from one side; its front is irregular."""
    if share <= 0:
        return np.full((n, n), -1e3, np.float32)
    y, x = _axes(n)
    turn = rng.uniform(0, 2 * np.pi)
    level = np.cos(turn) * y + np.sin(turn) * x + 0.10 * n * STEP * smooth_noise(rng, (n, n), 0.15 * n)
    level = level + 16 * smooth_noise(rng, (n, n), 26)
    return (level - np.quantile(level[tissue > 0], 1 - share)).astype(np.float32)


def _lymphoid(rng: np.random.Generator, n: int, inside: Field) -> Field:
    """Two or three follicles where there is room."""
    y, x = _axes(n)
    level = np.full((n, n), -1e3, np.float32)
    spots = np.argwhere(inside > np.quantile(inside, 0.9)) * STEP
    for _ in range(int(rng.integers(2, 4))):
        cy, cx = spots[rng.integers(len(spots))]
        radius = n * STEP * rng.uniform(0.075, 0.115)
        level = np.maximum(level, radius - np.hypot(y - cy, (x - cx) * rng.uniform(0.8, 1.2)))
    return (level + 22 * smooth_noise(rng, (n, n), 36)).astype(np.float32)


def _fat(rng: np.random.Generator, n: int, organ: Organ, tumour: Field, lymphoid: Field, tissue: Field) -> Field:
    if organ.fat <= 0:
        return np.full((n, n), -1e3, np.float32)
    y, x = _axes(n)
    turn = rng.uniform(0, 2 * np.pi)
    level = 0.35 * (np.cos(turn) * y + np.sin(turn) * x) + 0.13 * n * STEP * smooth_noise(rng, (n, n), 0.13 * n)
    level = level - np.quantile(level[tissue > 0], 1 - organ.fat)
    return np.minimum.reduce([level, -tumour - 30, -lymphoid - 25])


def _benign_glands(rng: np.random.Generator, n: int, organ: Organ, free: Field) -> Field:
    """Level of rounded glands, packed but never fused: their union, cut half-way between neighbours."""
    mean, spread = organ.gland_radius
    room = free > mean * 0.8
    if organ.lobules:
        grain = smooth_noise(rng, (n, n), 5.5 * organ.gland_spacing / STEP)
        room &= grain > np.quantile(grain, organ.lobules)
    points = scatter(rng, room * np.float32(14 * (STEP / organ.gland_spacing) ** 2), STEP)
    points = points[thin_out(points, organ.gland_spacing, rng)]
    warp = 0.22 * mean * np.stack([smooth_noise(rng, (n, n), 1.1 * mean / STEP) for _ in range(2)])
    tilt = sample(smooth_noise(rng, (n, n), 170), points, STEP) * 1.5 + rng.normal(0, 0.4, len(points))
    best, second = np.full((2, n, n), -1e3, np.float32)
    for (cy, cx), angle in zip(points, tilt, strict=True):
        radius, aspect = max(rng.normal(mean, spread), 0.6 * mean), rng.uniform(1, organ.gland_aspect)
        box = _box(cy, cx, radius * aspect * 1.5, n)
        dy = np.arange(box[0].start, box[0].stop)[:, None] * STEP - cy + warp[0][box]
        dx = np.arange(box[1].start, box[1].stop)[None, :] * STEP - cx + warp[1][box]
        long, short = np.cos(angle) * dy + np.sin(angle) * dx, np.cos(angle) * dx - np.sin(angle) * dy
        depth = radius - np.hypot(long / aspect, short)
        second[box] = np.maximum(second[box], np.minimum(best[box], depth))
        best[box] = np.maximum(best[box], depth)
    wavy = organ.folds * (5 * smooth_noise(rng, (n, n), 12) + 3 * smooth_noise(rng, (n, n), 6))
    return np.minimum.reduce([best + wavy, (best - second) / 2 - 4, free + 4])


def _box(cy: float, cx: float, reach: float, n: int) -> tuple[slice, slice]:
    low = [max(0, int((c - reach) / STEP)) for c in (cy, cx)]
    high = [min(n, int((c + reach) / STEP) + 2) for c in (cy, cx)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def _tumour_glands(rng: np.random.Generator, n: int, tumour: Field) -> Field:
    """Irregular, fused glands and cords: a level set of noise, inside the tumour."""
    width = rng.uniform(20, 32)
    grain = 0.85 * smooth_noise(rng, (n, n), width) + 0.45 * smooth_noise(rng, (n, n), 0.4 * width)
    return np.minimum(tumour, 16 * (grain + rng.uniform(0.0, 0.25)))


def _lumen(rng: np.random.Generator, n: int, organ: Organ, gland: Field, tumour: Field) -> Field:
    """Level of the lumen: below the height of the epithelium; in tumour, irregular holes some cells from the base."""
    wavy = smooth_noise(rng, (n, n), 9) + 0.6 * smooth_noise(rng, (n, n), 4)
    height = organ.epithelium * (1 + 0.35 * organ.folds * wavy + 0.08 * smooth_noise(rng, (n, n), 20))
    benign = gland - np.maximum(height, 0.65 * organ.epithelium)
    holes = 0.8 * smooth_noise(rng, (n, n), 14) + 0.5 * smooth_noise(rng, (n, n), 6)
    cancer = np.minimum(9 * (holes - 0.55), gland - 15)
    return np.where(tumour > 0, cancer, benign).astype(np.float32)


def _vessels(rng: np.random.Generator, n: int, room: Field) -> Field:
    level = np.full((n, n), -1e3, np.float32)
    points = scatter(rng, (room > 10) * np.float32(90e-6 * STEP**2), STEP)
    points = points[thin_out(points, 110, rng)]
    warp = 3.5 * smooth_noise(rng, (n, n), 12)
    for cy, cx in points:
        radius = min(rng.lognormal(np.log(11), 0.5), 34.0, float(sample(room, np.array([[cy, cx]]), STEP)[0]) + 2)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(1, 2.2)
        box = _box(cy, cx, radius * aspect * 1.4 + 10, n)
        dy = np.arange(box[0].start, box[0].stop)[:, None] * STEP - cy
        dx = np.arange(box[1].start, box[1].stop)[None, :] * STEP - cx
        long, short = np.cos(angle) * dy + np.sin(angle) * dx, np.cos(angle) * dx - np.sin(angle) * dy
        level[box] = np.maximum(level[box], radius - np.hypot(long / aspect, short) + warp[box])
    return signed_distance(level)


def _fat_cells(rng: np.random.Generator, fat: Field, tissue: Field) -> tuple[Field, Field]:
    """Whole fat cells (a Voronoi tiling): signed distance to their union, and distance to the walls between them."""
    from scipy.spatial import cKDTree

    shape, wall = fat.shape, np.full(fat.shape, 1e3, np.float32)
    points = scatter(rng, (fat > -60) * np.float32(12 * (STEP / 52) ** 2), STEP)
    points = points[thin_out(points, 52, rng)]
    if len(points) < 2:
        return np.full(shape, -1e3, np.float32), wall
    where = np.argwhere(fat > -60)
    shift = 3 * np.stack([sample(smooth_noise(rng, shape, 16), where * STEP, STEP) for _ in range(2)], 1)
    distance, nearest = cKDTree(points).query(where * STEP + shift, k=2)
    wall[where[:, 0], where[:, 1]] = (distance[:, 1] - distance[:, 0]) / 2
    own = (sample(fat, points, STEP) > 0) & (sample(tissue, points, STEP) > 15)
    level = np.full(shape, -1.0, np.float32)
    level[where[:, 0], where[:, 1]] = np.where(own[nearest[:, 0]], 1.0, -1.0)
    return _smooth(signed_distance(level), 2.5), wall


def _fibres(rng: np.random.Generator, around: Field) -> tuple[Field, Field]:
    """Collagen directions: around nearby glands and vessels, elsewhere in sweeping waves.

    Directions are averaged as doubled angles, so that a fibre and its reverse are equal.
    """
    shape = around.shape
    dy, dx = np.gradient(_smooth(around, 5))
    near = np.exp(-np.maximum(around, 0) / 35)
    free = rng.uniform(0, np.pi) + 1.1 * smooth_noise(rng, shape, 130)
    tangent = np.arctan2(dx, dy) + np.pi / 2
    cos = near * np.cos(2 * tangent) + (1 - near) * np.cos(2 * free)
    sin = near * np.sin(2 * tangent) + (1 - near) * np.sin(2 * free)
    angle = np.arctan2(sin, cos) / 2 + 0.35 * smooth_noise(rng, shape, 16) + 0.15 * smooth_noise(rng, shape, 6)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
