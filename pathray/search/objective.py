"""The objective of a search: one metric of a run, and whether lower or higher is better. Reads rows of metrics.

A name with a slash is an evaluator's metric (``pathorob/camelyon/ri``), in robustness.jsonl. Names that begin with
``val/`` (the training's own validation) and all others are in metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathray.errors import UserError
from pathray.evaluation.early_stopping import EarlyStopping
from pathray.run.layout import EVALUATIONS, METRICS

IMAGES = "images_seen"
VALIDATION = "val/"  # prefix of the training's own validation metrics
SMALLER_IS_BETTER = ("loss", "val_loss", "nll", "mse")
Point = tuple[int, float]  # images seen, value


@dataclass
class Objective:
    metric: str = (
        "loss"  # a training metric, a validation metric (val/spearman) or an evaluator's (pathorob/camelyon/ri)
    )
    mode: str = "min"  # | max

    def __post_init__(self) -> None:
        name, key = self.metric.rpartition("/")[2], "objective.mode"
        if not name:
            message = "objective.metric must name a metric"
            raise UserError(message, key="objective.metric", found=self.metric, expected="such as loss")
        if self.mode not in ("min", "max"):
            raise UserError("mode must be min or max", key=key, found=self.mode, expected="min | max")
        if self.mode == "max" and name in SMALLER_IS_BETTER:
            message = f"lower is better for {self.metric}: max would keep the worst"
            raise UserError(message, key=key, found="max", expected="min")
        try:
            EarlyStopping(self.metric, self.mode)
        except UserError as e:
            raise UserError(e.message, key=key, found=self.mode, expected="max") from e

    @property
    def source(self) -> str:
        """The file in a run's folder whose rows contain the metric."""
        return EVALUATIONS if self.is_evaluators else METRICS

    @property
    def is_evaluators(self) -> bool:
        """Whether an evaluator computes the metric, rather than the training itself."""
        return "/" in self.metric and not self.metric.startswith(VALIDATION)

    def history(self, rows: Iterable[Mapping[str, Any]]) -> list[Point]:
        """(images seen, value) of all rows with the metric (also NaN), by images seen; the later of two equal."""
        found = [row for row in rows if isinstance(row.get(self.metric), int | float) and IMAGES in row]
        return sorted({int(row[IMAGES]): float(row[self.metric]) for row in found}.items())

    def best(self, history: Sequence[Point]) -> Point | None:
        """The best point, the earliest of equals; None if there is no finite value."""
        numbers = [point for point in history if math.isfinite(point[1])]
        return min(numbers, key=lambda point: (self.cost(point[1]), point[0]), default=None)

    def cost(self, value: float) -> float:
        """The value with its sign chosen so that lower is better."""
        return value if self.mode == "min" else -value
