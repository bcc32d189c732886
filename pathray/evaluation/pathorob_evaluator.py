"""The evaluator `pathorob`: robustness index, average performance drop and clustering score of one dataset.

Not here: the metrics themselves, each in its own file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.evaluation.datasets import Dataset, Unfit
from pathray.evaluation.metrics.apd import average_performance_drop
from pathray.evaluation.metrics.clustering import clustering_score, pairs
from pathray.evaluation.metrics.robustness_index import robustness_index
from pathray.stats.bootstrap import Interval

Floats = npt.NDArray[np.floating[Any]]
Values = dict[str, float]


class PathorobEvaluator:
    """Values by name: ``ri``, ``ri_k``, ``acc_knn``; ``apd_id``, ``apd_ood``, ``apd_avg`` with their intervals, and per
    split ``acc_id_<s>``, ``acc_ood_<s>``, ``cramers_v_<s>``; ``clustering_score``, ``ari_class``, ``ari_center``."""

    metrics = ("ri", "apd", "clustering")
    values = (
        *("ri", "acc_knn", "apd_id", "apd_ood", "apd_avg", "acc_id_*", "acc_ood_*"),
        *("clustering_score", "ari_class", "ari_center"),
    )

    def evaluate(self, dataset: Dataset, features: Floats, due: Collection[str]) -> tuple[Values, list[str]]:
        """A metric that the dataset cannot carry is left out, and a note says why."""
        values, notes = Values(), list[str]()
        for metric in self.metrics:
            if metric in due:
                try:
                    found, said = getattr(self, f"_{metric}")(dataset, features)
                except Unfit as e:
                    notes.append(f"{metric}: {e}")
                    continue
                values |= found
                notes += [f"{metric}: {note}" for note in said if note]
        return values, notes

    def _ri(self, dataset: Dataset, features: Floats) -> tuple[Values, list[str]]:
        rows = dataset.rows["ri"]
        inside = rows.in_domain
        labels, centers, slides = rows.labels[inside], rows.centers[inside], rows.slides[inside]
        parts = None
        if dataset.known is not None and dataset.known.pairs:
            groups = rows.group[inside]
            named = [np.flatnonzero(groups == group) for group in np.unique(groups) if group]
            parts = named or [among for _, among in pairs(labels, centers)]
        x = features[dataset.index["ri"][inside]]
        found = robustness_index(x, labels, centers, slides, k=dataset.neighbours, parts=parts)
        note = "no neighbour shares only the class or only the centre" if np.isnan(found.value) else ""
        return {"ri": found.value, "ri_k": found.k, "acc_knn": found.accuracy}, [note]

    def _apd(self, dataset: Dataset, features: Floats) -> tuple[Values, list[str]]:
        rows = dataset.rows["apd"]
        found = average_performance_drop(
            features[dataset.index["apd"]],
            rows.labels,
            rows.centers,
            rows.slides,
            rows.ood,
            name=dataset.name,
            classes=dataset.known.classes if dataset.known else (),
        )
        values = _with_ends("apd_id", found.apd_id) | _with_ends("apd_avg", found.apd_avg)
        values |= {f"acc_id_{s}": float(a) for s, a in enumerate(found.accuracy_id.mean(axis=0))}
        values |= {f"cramers_v_{s}": v for s, v in enumerate(found.correlation)}
        if found.apd_ood is not None and found.accuracy_ood is not None:
            values |= _with_ends("apd_ood", found.apd_ood)
            values |= {f"acc_ood_{s}": float(a) for s, a in enumerate(found.accuracy_ood.mean(axis=0))}
        return values, [found.design.reason]

    def _clustering(self, dataset: Dataset, features: Floats) -> tuple[Values, list[str]]:
        rows = dataset.rows["clustering"]
        inside = rows.in_domain
        x = features[dataset.index["clustering"][inside]]
        found = clustering_score(x, rows.labels[inside], rows.centers[inside], rows.slides[inside])
        values = {
            "clustering_score": found.score,
            "ari_class": float(np.mean([pair.ari_class for pair in found.pairs])),
            "ari_center": float(np.mean([pair.ari_center for pair in found.pairs])),
        }
        return values | (_with_ends("clustering_score", found.interval) if found.interval else {}), [
            "" if found.interval else "too few slides for an interval"
        ]


def _with_ends(name: str, interval: Interval) -> Values:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
