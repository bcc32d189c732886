"""Points of ROC and precision-recall curves against scikit-learn, bands against a loop over resamples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from pathray.stats.bootstrap import cluster_counts
from pathray.stats.curves import curve


@pytest.fixture
def rows():
    g = np.random.default_rng(0)
    y = g.random(90) < 0.4
    return y, np.round(g.normal(size=90) + y, 1), np.repeat(np.arange(30), 3)


def test_points_are_scikit_learns(rows):
    y, s, _ = rows
    fpr, tpr, thresholds = metrics.roc_curve(y, s, drop_intermediate=False)
    roc = curve(y, s, "roc", resamples=10)
    np.testing.assert_allclose([roc.x, roc.y], [fpr, tpr], atol=1e-12)
    assert roc.thresholds[0] is None and roc.thresholds[1:] == thresholds[1:].tolist()
    precision, recall, thresholds = metrics.precision_recall_curve(y, s)
    pr = curve(y, s, "pr", resamples=10)
    np.testing.assert_allclose([pr.x, pr.y], [recall[:-1][::-1], precision[:-1][::-1]], atol=1e-12)
    assert pr.thresholds == thresholds[::-1].tolist()


@pytest.mark.parametrize("kind", ["roc", "pr"])
def test_bands_are_quantiles_of_the_curves_of_the_rows_drawn(rows, kind):
    y, s, patients = rows
    found = curve(y, s, kind, patients, resamples=60, level=0.9)
    (counts,) = cluster_counts(30, 60, 0)
    drawn = []
    for times in counts:
        chosen = np.repeat(np.arange(90), times[patients].astype(int))
        if kind == "roc":
            x, up, _ = metrics.roc_curve(y[chosen], s[chosen], drop_intermediate=False)
            drawn.append([up[x <= g + 1e-9].max() for g in found.grid])
        else:
            up, x, _ = metrics.precision_recall_curve(y[chosen], s[chosen])
            x, up = x[:-1][::-1], up[:-1][::-1]
            drawn.append([up[(x >= g - 1e-9) & (x > 0)][0] for g in found.grid])
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-12)


def test_steps_of_the_precision_recall_curve_sum_to_average_precision(rows):
    y, s, _ = rows
    pr = curve(y, s, "pr", resamples=5)
    area = float(np.sum(np.diff([0.0, *pr.x]) * pr.y))
    assert area == pytest.approx(metrics.average_precision_score(y, s), abs=1e-12)


def test_a_curve_that_is_not_defined_says_why_in_strict_json():
    empty = curve([1, 1], [0.1, 0.2], "roc")
    assert empty.x == [] and empty.reason == "all rows are positive"
    alone = curve([1, 0], [0.1, 0.2], "pr", ["p", "p"])
    assert alone.x and alone.low == [] and "two clusters" in alone.reason
    rare = curve([1] + [0] * 20, np.arange(21.0), "roc", resamples=200)
    assert rare.x and rare.low == [] and "resamples lack a class" in rare.reason
    for found in (empty, alone, rare):
        json.dumps(found.as_json(), allow_nan=False)
