"""The parameters of each organ's tissue: sizes and densities of its parts.

They are rough textbook proportions, enough to look like the organ, and not for measuring biology.
"""

from __future__ import annotations

from dataclasses import dataclass

from pathray.errors import UserError


@dataclass(frozen=True)
class Organ:
    """Lengths in µm, densities per mm²."""

    name: str
    gland_radius: tuple[float, float]  # mean, standard deviation
    gland_spacing: float
    gland_aspect: float  # largest ratio of a gland's length to its width
    epithelium: float  # height of the epithelium
    folds: float  # folding of the lumen's outline, 0 to 1
    lobules: float  # share of the stroma without glands, 0 (packed) to 1
    goblets: float  # share of the epithelium with mucin
    nucleus: tuple[float, float]  # half axes of an epithelial nucleus
    nuclear_spacing: float
    fat: float  # share of fat, 0 to 1
    lymphocytes: float
    fibroblasts: float
    looseness: float  # 0 dense collagen, 1 loose lamina propria


COLON = Organ(
    "colon", gland_radius=(40, 5), gland_spacing=82, gland_aspect=1.7, epithelium=28, folds=0.15, lobules=0.0,
    goblets=0.85, nucleus=(4.6, 2.7), nuclear_spacing=5.4, fat=0.06, lymphocytes=2400, fibroblasts=900,
    looseness=0.75,
)  # fmt: skip
PROSTATE = Organ(
    "prostate", gland_radius=(78, 22), gland_spacing=150, gland_aspect=1.5, epithelium=19, folds=0.8,
    lobules=0.15, goblets=0.0, nucleus=(4.0, 3.1), nuclear_spacing=6.0, fat=0.0, lymphocytes=220,
    fibroblasts=1000, looseness=0.2,
)  # fmt: skip
BREAST = Organ(
    "breast", gland_radius=(20, 4), gland_spacing=43, gland_aspect=1.6, epithelium=12, folds=0.1, lobules=0.6,
    goblets=0.0, nucleus=(3.7, 3.0), nuclear_spacing=6.2, fat=0.32, lymphocytes=260, fibroblasts=480,
    looseness=0.3,
)  # fmt: skip
ORGANS = {organ.name: organ for organ in (COLON, PROSTATE, BREAST)}


def organ(name: str) -> Organ:
    """The organ with this name. UserError for an unknown name."""
    if name not in ORGANS:
        raise UserError("unknown organ in the demo cohort", key="organ", found=name, expected=sorted(ORGANS))
    return ORGANS[name]
