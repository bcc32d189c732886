"""The evaluator `probe`: how well a linear probe and the nearest neighbours tell the classes of one dataset.

Not here: the probes (pathray.evaluation.metrics.probe).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.evaluation.datasets import Dataset, Unfit
from pathray.evaluation.metrics.probe import grouped_split, knn_probe, linear_probe

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[Any]
TEST_SHARE, SEED = 0.25, 0


class ProbeEvaluator:
    """Balanced accuracies on the class: ``linear_id``, ``knn_id`` on a quarter of the in-domain slides, ``…_ood`` on
    the out-of-domain rows, if there are any. Training never sees a slide that tests."""

    metrics = ("linear", "knn")
    values = ("linear_id", "linear_ood", "knn_id", "knn_ood")

    def evaluate(self, dataset: Dataset, features: Floats, due: Collection[str]) -> tuple[dict[str, float], list[str]]:
        """Unfit for fewer than two in-domain slides or classes, and where no two classes have a slide to train on and
        one to test on. A note names the classes that have no test slide."""
        rows, index = dataset.rows["apd"], dataset.index["apd"]
        inside = rows.in_domain
        for name, values in (("class", rows.labels), ("slide", rows.slides)):
            if np.unique(values[inside]).size < 2:
                raise Unfit("a probe needs two or more", file=rows.file, key=name, found=np.unique(values).tolist())
        fit, held = (inside[part] for part in grouped_split(rows.labels[inside], rows.slides[inside], TEST_SHARE, SEED))
        out, notes = dict[str, float](), list[str]()
        for where, test in (("id", held), ("ood", rows.out_of_domain)):
            if not len(test):
                continue
            if reason := _cannot_test(rows.labels[inside], rows.labels[test], where):
                notes.append(reason)
            if where == "id" and np.unique(rows.labels[test]).size < 2:
                continue
            data = (features[index[fit]], rows.labels[fit], features[index[test]], rows.labels[test])
            own, other = rows.slides[fit], rows.slides[test]
            if "linear" in due:
                out[f"linear_{where}"] = linear_probe(*data, train_groups=own, test_groups=other).balanced_accuracy
            if "knn" in due:
                out[f"knn_{where}"] = knn_probe(*data, train_groups=own, test_groups=other).balanced_accuracy
        if not out:
            raise Unfit("too few slides to test a probe", file=rows.file, key="slide", found="; ".join(notes))
        return out, notes


def _cannot_test(classes: Labels, tested: Labels, where: str) -> str:
    """What the reader of a balanced accuracy has to know: it is the mean over fewer classes than there are."""
    missing = sorted(set(classes.tolist()) - set(tested.tolist()))
    if not missing:
        return ""
    part = "the in-domain test" if where == "id" else "the out-of-domain test"
    why = " (each needs two slides or more)" if where == "id" else ""
    return f"{part} has no slide of {', '.join(missing)}{why}"
