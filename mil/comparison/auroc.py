"""DeLong's test of the AUROCs of two experiments, also of means over seeds; slides of a patient may depend on each
other (Obuchowski).

With AUROCs θ `[S]` of all seeds of a and b, their covariance Σ `[S, S]` and the contrast c (1/S_a for seeds of a,
−1/S_b for those of b), z = cᵀθ/√(cᵀΣc). With one seed each this is DeLong's test. Seeds are fixed: their spread is no
part of it. Not here: the covariance (pathray.stats.comparing.delong).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from mil.comparison.experiments import Experiment
from pathray.stats.bootstrap import cluster_codes
from pathray.stats.comparing.delong import SMALLEST_VARIANCE, auroc_covariance
from pathray.stats.estimates import Estimate

Json = dict[str, Any]


def compare_aurocs(a: Experiment, b: Experiment, level: float = 0.95) -> dict[str, Json]:
    """The test of the second of two classes; of more, of each class against the rest. Strict JSON by class: `a`, `b`,
    `difference` (value, low, high, reason), `z`, `p_value`."""
    classes = a.first.classes
    numbers = [1] if len(classes) == 2 else list(range(len(classes)))
    return {classes[k]: _test(a, b, k, level) for k in numbers}


def _test(a: Experiment, b: Experiment, k: int, level: float) -> Json:
    truth, patients = a.first.truth == k, a.first.patients
    scores = np.stack([one.values[:, k] for one in (*a.seeds, *b.seeds)])
    theta, covariance = auroc_covariance(truth, scores, patients)
    count = int(cluster_codes(patients, len(truth)).max()) + 1
    of_a, of_b = np.zeros(len(theta)), np.zeros(len(theta))
    of_a[: len(a.seeds)], of_b[len(a.seeds) :] = 1 / len(a.seeds), 1 / len(b.seeds)
    reason = _why_none(truth, covariance)
    estimates = []
    for weights, low in ((of_a, 0.0), (of_b, 0.0), (of_a - of_b, -1.0)):
        estimates.append(
            _estimate(float(weights @ theta), float(weights @ covariance @ weights), low, level, count, reason)
        )
    difference = estimates[2]
    variance = float((of_a - of_b) @ covariance @ (of_a - of_b))
    z = None if difference.reason or difference.value is None else difference.value / math.sqrt(variance)
    out: Json = {key: one.as_json() for key, one in zip(("a", "b", "difference"), estimates, strict=True)}
    return out | {"z": z, "p_value": None if z is None else float(2 * ndtr(-abs(z)))}


def _why_none(truth: Any, covariance: Any) -> str | None:
    if truth.all() or not truth.any():
        return "all slides are of this class" if truth.all() else "no slide is of this class"
    if not np.isfinite(covariance).all():
        return "a variance needs at least two patients with slides of the class, and two with others"
    return None


def _estimate(value: float, variance: float, low: float, level: float, count: int, reason: str | None) -> Estimate:
    if reason is None and variance <= SMALLEST_VARIANCE:
        reason = "there is no variance: all ranks are alike, or nothing is misplaced"
    if reason:
        return Estimate(value if math.isfinite(value) else None, level=level, clusters=count, reason=reason)
    half = float(ndtri(0.5 + level / 2)) * math.sqrt(variance)
    return Estimate(value, max(value - half, low), min(value + half, 1.0), level, count)
