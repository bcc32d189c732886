"""A small labelled cohort: bags with planted witnesses, their store and their table of slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mil.store.build import StoreBuild
from mil.store.places import BuildSettings, Source, read_header
from mil.store.reading import Store
from mil.store.write import write_slide
from tests.builders.bags import grid_coords, write_bag


def make_store(folder: Path, bags: Path, settings: BuildSettings | None = None) -> Store:
    """The store of all bags in `bags`."""
    settings = settings or BuildSettings(dtype="float32", max_instances=None)
    headers = [read_header(Source(path.stem, str(path))) for path in sorted(bags.glob("*.h5"))]
    with StoreBuild(str(folder), settings, headers) as build:
        build.finish(map(write_slide, build.places))
    return Store(str(folder))


def write_cohort(
    root: Path, *, patients: int = 12, slides: int = 2, tiles: int = 30, dim: int = 8, share: float = 0.2, seed: int = 0
) -> Path:
    """`root`/slides.csv, h5/ and store/: every other patient is a "tumor", with a share of tiles moved by 3 in one
    direction. Returns `root`."""
    draw = np.random.default_rng(seed)
    rows = ["slide_id,patient_id,label,score"]
    for p in range(patients):
        label = ("normal", "tumor")[p % 2]
        for s in range(slides):
            n = int(draw.integers(tiles // 2, tiles * 2))
            features = draw.normal(size=(n, dim)).astype(np.float32)
            if label == "tumor":
                features[: max(1, round(share * n)), 0] += 3
            name = f"p{p:02d}_s{s}"
            write_bag(
                root / "h5" / f"{name}.h5",
                features,
                grid_coords(n, seed=p * 7 + s),
                of_coords={"patch_size_level0": 512},
            )
            rows.append(f"{name},P{p:02d},{label},{p % 2 + 0.1 * s:.1f}")
    (root / "slides.csv").write_text("\n".join(rows) + "\n")
    make_store(root / "store", root / "h5")
    return root
