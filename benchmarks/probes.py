"""Probes of frozen features that the benchmarks of learning share: linear and nearest neighbours, on labelled patches.

Not here: the patches (tissue.py), the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tissue import Patches

from pathray.draw.charts import Panel
from pathray.evaluation.metrics.probe import knn_probe, linear_probe
from pathray.stats.bootstrap import t_interval

CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # strengths of the linear probe
PROBES = ("linear", "knn")
Figures = dict[str, Any]


def probe_panel(title: str, name: str) -> Panel:
    """A probe with the interval over its folds, next to its baselines."""
    lines = ((name, "pretrained"), (f"{name}_random", "random weights"), (f"{name}_colours", "colours"))
    return Panel(title, lines, "accuracy", band=(f"{name}_low", f"{name}_high"), smooth=False)


def probe(x: np.ndarray, patches: Patches, k: int) -> dict[str, float]:
    """Test accuracy of a linear probe and of k nearest neighbours."""
    train, test = ~patches.test, patches.test
    split = (x[train], patches.labels[train], x[test], patches.labels[test])
    return {"linear": linear_probe(*split).accuracy, "knn": knn_probe(*split, k=k).accuracy}


def cross_validated(x: np.ndarray, patches: Patches, folds: int, neighbours: int) -> Figures:
    """Accuracy over `folds` of all patches, trained on the other folds: the mean and its t interval over folds."""
    from sklearn.model_selection import StratifiedKFold

    labels, found = patches.labels, {name: list[float]() for name in PROBES}
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, labels):
        split = (x[train], labels[train], x[test], labels[test])
        found["linear"].append(linear_probe(*split, cs=CS).accuracy)
        found["knn"].append(knn_probe(*split, k=neighbours).accuracy)
    out: Figures = {}
    for name, values in found.items():
        interval = t_interval(values)
        out |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        out[f"{name}_folds"] = values
    return out


def renamed(probes: Figures, what: str) -> Figures:
    """The estimates of a baseline, under its own name."""
    return {f"{name}_{what}": probes[name] for name in PROBES}


def in_words(probes: Figures) -> str:
    return "  ".join(f"{n} {probes[n]:.3f} [{probes[n + '_low']:.3f}, {probes[n + '_high']:.3f}]" for n in PROBES)
