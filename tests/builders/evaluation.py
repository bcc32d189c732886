"""Cohorts of features with a class, a centre and slides, for the evaluators' tests; the classes and centres stand in
features as strongly as asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Cohort:
    x: np.ndarray
    labels: np.ndarray
    centers: np.ndarray
    slides: np.ndarray
    ood: np.ndarray

    def text(self) -> str:
        """The manifest."""
        subset = np.where(self.ood, "OOD", "ID")
        rows = zip(range(len(self.x)), self.labels, self.centers, self.slides, subset, strict=True)
        lines = [f"{i}.png,{y},{c},{s},{d}" for i, y, c, s, d in rows]
        return "\n".join(["image_path,label,medical_center,slide_id,subset", *lines]) + "\n"

    def write(self, path: Path) -> str:
        path.write_text(self.text())
        return str(path)


def cohort(
    *,
    slides: int = 6,
    patches: int = 8,
    sizes: tuple[int, ...] = (),
    classes: int = 2,
    centers: int = 2,
    dim: int = 24,
    biology: float = 1.0,
    shortcut: float = 0.0,
    slide: float = 0.2,
    ood: bool = False,
    seed: int = 0,
) -> Cohort:
    """`slides` slides of `patches` patches in every cell, or slides of `sizes`; with `ood` as many of a further
    centre."""
    sizes = sizes or (patches,) * slides
    g = np.random.default_rng(seed)
    by_class = g.normal(size=(classes, dim)) * biology
    by_center = g.normal(size=(centers + 1, dim)) * shortcut
    rows = []
    for c in range(centers + ood):
        for y in range(classes):
            for s, size in enumerate(sizes):
                own = g.normal(size=dim) * slide
                for _ in range(size):
                    rows.append(
                        (by_class[y] + by_center[c] + own + g.normal(size=dim), f"y{y}", f"c{c}", f"s{c}{y}{s}")
                    )
    x, labels, sites, names = (np.array(v) for v in zip(*rows, strict=True))
    return Cohort(x.astype(np.float32), labels, sites, names, sites == f"c{centers}")
