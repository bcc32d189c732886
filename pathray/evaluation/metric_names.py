"""The metrics of a robustness report: what each is called, what it means, and which of them a row holds.

Not here: how they are computed (pathray.evaluation.metrics) and drawn (pathray.evaluation.report_charts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]

SPLIT = re.compile(r"(acc_id|acc_ood|cramers_v)_(\d+)")


@dataclass(frozen=True)
class Meaning:
    """What a metric is called, which value is best, and one plain sentence."""

    title: str
    best: str
    sentence: str


UP = "higher is better, 1 is best"
DROP = "0 is best, negative is worse"
MEANINGS: Mapping[str, Meaning] = {
    "ri": Meaning(
        "Robustness index",
        UP,
        "Among the nearest patches of other slides, how often they share the class although they come from another "
        "centre, rather than the centre although they are of another class.",
    ),
    "acc_knn": Meaning(
        "Accuracy of the neighbours' vote",
        UP,
        "How often the nearest patches of other slides vote for the right class (balanced accuracy): a robustness "
        "index means little where this is low.",
    ),
    "apd_id": Meaning(
        "Performance drop, in-domain",
        DROP,
        "Which share of its accuracy a classifier loses, at the centres that it is trained on, when class and centre "
        "go together in its training set.",
    ),
    "apd_ood": Meaning(
        "Performance drop, out-of-domain",
        DROP,
        "The same loss at centres that the classifier is not trained on.",
    ),
    "apd_avg": Meaning(
        "Performance drop, average", DROP, "The mean of the in-domain and the out-of-domain loss, if there are both."
    ),
    "clustering_score": Meaning(
        "Clustering score",
        "higher is better, 1 is best, −1 is worst",
        "Whether clusters of patches, made without labels, follow the class (positive) or the centre (negative).",
    ),
    "linear_id": Meaning(
        "Linear probe, in-domain",
        UP,
        "Balanced accuracy of a linear classifier of the class on slides it has not seen.",
    ),
    "linear_ood": Meaning(
        "Linear probe, out-of-domain", UP, "The same classifier's balanced accuracy on the out-of-domain patches."
    ),
    "knn_id": Meaning(
        "kNN probe, in-domain", UP, "Balanced accuracy of the nearest neighbours' vote on slides not searched in."
    ),
    "knn_ood": Meaning(
        "kNN probe, out-of-domain", UP, "The same vote's balanced accuracy on the out-of-domain patches."
    ),
}
SPLITS = Meaning(
    "Accuracy by correlation",
    "a flat line is best",
    "Balanced accuracy of the performance drop's classifiers over how firmly class and centre go together in their "
    "training set (Cramér's V: 0 not at all, 1 entirely); a line that falls shows a shortcut being taken.",
)


@dataclass(frozen=True)
class MetricName:
    """The parts of a metric's full name ``plugin/dataset/metric``."""

    plugin: str
    dataset: str
    metric: str

    @property
    def full(self) -> str:
        return f"{self.plugin}/{self.dataset}/{self.metric}"


def limits(metric: str) -> tuple[float, float]:
    """What a metric can be; the ends of intervals that older versions wrote may lie beyond."""
    if metric not in MEANINGS:
        return -np.inf, np.inf
    if metric.startswith("apd_"):
        return -1.0, np.inf
    return (-1.0 if metric == "clustering_score" else 0.0), 1.0


def list_metrics(rows: Sequence[Row]) -> list[MetricName]:
    """The metrics with a number in the rows, ends of intervals and the tuning's own figures left out: by plugin,
    dataset, and in the order that they are explained in."""
    found = set()
    for row in rows:
        for key, value in row.items():
            plugin, _, rest = key.partition("/")
            dataset, _, metric = rest.rpartition("/")
            if dataset and plugin != "tune" and isinstance(value, int | float) and not _is_end(metric, key, row):
                found.add(MetricName(plugin, dataset, metric))
    order = list(MEANINGS)
    rank = {name: (order.index(name) if name in order else len(order)) for name in {n.metric for n in found}}
    return sorted(found, key=lambda n: (n.plugin, n.dataset, rank[n.metric], n.metric))


def _is_end(metric: str, key: str, row: Row) -> bool:
    stem, _, end = metric.rpartition("_")
    return end in ("low", "high") and key.removesuffix(f"_{end}") in row and bool(stem)
