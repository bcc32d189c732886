"""What a search optimises: one metric of a run, and whether less or more is better. Reads rows of metrics.

A name with a slash is an evaluator's (``pathorob/camelyon/ri``), in robustness.jsonl; one under ``val/`` is of the
training's own validation and, as any other, in metrics.jsonl.
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
VALIDATION = "val/"  # what the names of a training's own validation begin with
SMALLER_IS_BETTER = ("loss", "val_loss", "nll", "mse")
Point = tuple[int, float]  # images seen, value


@dataclass
class Objective:
    metric: str = "loss"  # of the training, of its validation (val/spearman) or of an evaluator: pathorob/camelyon/ri
    mode: str = "min"  # | max

    def __post_init__(self) -> None:
        name, key = self.metric.rpartition("/")[2], "objective.mode"
        if not name:
            raise UserError("no metric is named", key="objective.metric", found=self.metric, expected="loss")
        if self.mode not in ("min", "max"):
            raise UserError("no such mode", key=key, found=self.mode, expected="min | max")
        if self.mode == "max" and name in SMALLER_IS_BETTER:
            message = f"of {self.metric} less is better: max would keep the worst"
            raise UserError(message, key=key, found="max", expected="min")
        try:
            EarlyStopping(self.metric, self.mode)
        except UserError as e:
            raise UserError(e.message, key=key, found=self.mode, expected="max") from e

    @property
    def source(self) -> str:
        """The file of a run's folder whose rows have it."""
        return EVALUATIONS if self.is_evaluators else METRICS

    @property
    def is_evaluators(self) -> bool:
        """Whether an evaluator next to the training computes it, and not the training itself."""
        return "/" in self.metric and not self.metric.startswith(VALIDATION)

    def history(self, rows: Iterable[Mapping[str, Any]]) -> list[Point]:
        """(images seen, value) of the rows that have the metric, NaN among them, by images seen; of two at the same
        place the later."""
        found = [row for row in rows if isinstance(row.get(self.metric), int | float) and IMAGES in row]
        return sorted({int(row[IMAGES]): float(row[self.metric]) for row in found}.items())

    def best(self, history: Sequence[Point]) -> Point | None:
        """The best point, the earliest of equal ones; None where there is no number. NaN and Inf are never the best."""
        numbers = [point for point in history if math.isfinite(point[1])]
        return min(numbers, key=lambda point: (self.cost(point[1]), point[0]), default=None)

    def cost(self, value: float) -> float:
        """The value, turned so that less is better."""
        return value if self.mode == "min" else -value
