"""When a run has stopped getting better: a decision over the history of evaluations, and nothing but that.

The same history gives the same decision, in whatever order its results came in; so there is no state to save. Not here:
who evaluates, and how a training is told to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pathray.errors import UserError

EARLY_STOPPED = "early_stopped"  # how a run ends, and why it was asked to
SHORT = {"apd": "apd_avg", "clustering": "clustering_score", "linear": "linear_id", "knn": "knn_id"}
LARGER_IS_BETTER = (
    *("ri", "apd_id", "apd_ood", "apd_avg", "clustering_score", "acc_knn", "ari_class"),  # of the drop, 0 is best
    *("linear_id", "linear_ood", "knn_id", "knn_ood"),
    *("spearman", "pearson", "samplewise_spearman", "samplewise_pearson"),
)


@dataclass(frozen=True)
class Decision:
    """`best` value so far and the images seen at it (None before the first number), whether the latest evaluation is
    that one, how many evaluations `since` then gave nothing better, and whether to `stop`."""

    best: float | None
    best_images: int | None
    improved: bool
    since: int
    stop: bool


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when `patience` evaluations in a row gave nothing better than the best before them, but not before
    `min_evals` numbers. `metric` is a full name (`metric_key`). UserError for a direction that would pick the worst."""

    metric: str
    mode: str = "max"
    patience: int = 5
    min_evals: int = 3

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise UserError("no such mode", key="selection.mode", found=self.mode, expected="min | max")
        if self.mode == "min" and self.metric.rpartition("/")[2] in LARGER_IS_BETTER:
            message = f"of {self.metric} larger is better: min would keep the worst"
            raise UserError(message, key="selection.mode", found="min", expected="max")
        for name in ("patience", "min_evals"):
            if getattr(self, name) < 1:
                raise UserError("at least one evaluation", key=name, found=getattr(self, name))

    def decide(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> Decision:
        """history: (images seen, metrics) of the evaluations. One that does not have the metric (it was not due) is
        passed over; one that is NaN counts as an evaluation without improvement, and never as the best."""
        best: tuple[float, int] | None = None
        since, numbers, improved = 0, 0, False
        for images, metrics in sorted(history, key=lambda entry: entry[0]):
            if self.metric not in metrics:
                continue
            value = float(metrics[self.metric])
            improved = not math.isnan(value) and (best is None or self._better(value, best[0]))
            numbers += not math.isnan(value)
            if improved:
                best, since = (value, images), 0
            elif best is not None:
                since += 1
        stop = since >= self.patience and numbers >= self.min_evals
        if best is None:
            return Decision(None, None, improved, since, stop)
        return Decision(best[0], best[1], improved, since, stop)

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.mode == "max" else value < than


def metric_key(plugin: str, dataset: str, metric: str) -> str:
    """The name a metric is logged under: ``pathorob/camelyon/apd_avg``, also for the short ``apd``."""
    return f"{plugin}/{dataset}/{SHORT.get(metric, metric)}"
