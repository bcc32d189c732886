"""What a slide model is built for: the width of its features, and what it predicts. Plain values; no torch."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES, ORDINAL, REGRESSION, SURVIVAL = "classification", "ordinal", "regression", "survival"
TASKS = (CLASSES, ORDINAL, REGRESSION, SURVIVAL)


@dataclass(frozen=True)
class Target:
    """`dim`: numbers of a tile's features. `label`: the column. `task`: one of TASKS. `classes`: their names, or those
    of grades in ascending order; else none. `scale`: mean and deviation of a regression's numbers. `counts`: training
    slides per class."""

    dim: int
    label: str
    task: str = CLASSES
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)
    counts: tuple[int, ...] = ()
