"""The full set of scores against scikit-learn, also with weights; what is missing has its reason; strict JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from pathray.stats.classification import ClassifiedRows, classification_report, classification_set

NAMES = ("benign", "in situ", "invasive")


def cohort(k: int = 3, n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probabilities with ties, and weights."""
    g = np.random.default_rng(seed)
    truth = np.append(np.arange(k), g.integers(0, k, n - k))
    odds = np.round(g.random((n, k)) + 0.5 * np.eye(k)[truth], 1) + 0.05
    return truth, odds / odds.sum(axis=1, keepdims=True), g.integers(0, 4, n).astype(float)


def scikit_learns(y: np.ndarray, p: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Every score by scikit-learn, macro means by hand; `y` has all classes where w > 0."""
    y, p, w = y[w > 0], p[w > 0], w[w > 0]
    k, called = p.shape[1], p.argmax(axis=1)
    out = {
        "accuracy": metrics.accuracy_score(y, called, sample_weight=w),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called, sample_weight=w),
        "mcc": metrics.matthews_corrcoef(y, called, sample_weight=w),
        "kappa": metrics.cohen_kappa_score(y, called, sample_weight=w),
        "quadratic_kappa": metrics.cohen_kappa_score(y, called, weights="quadratic", sample_weight=w),
        "log_loss": metrics.log_loss(y, p, sample_weight=w),
        "brier": np.average(np.square(p - np.eye(k)[y]).sum(axis=1), weights=w) / (2 if k == 2 else 1),
    }
    each = {name: [] for name in ("auroc", "average_precision", "recall", "precision", "specificity", "f1")}
    for c in range(k):
        own, mine = y == c, called == c
        each["auroc"].append(metrics.roc_auc_score(own, p[:, c], sample_weight=w))
        each["average_precision"].append(metrics.average_precision_score(own, p[:, c], sample_weight=w))
        each["recall"].append(metrics.recall_score(own, mine, sample_weight=w))
        each["precision"].append(metrics.precision_score(own, mine, sample_weight=w))
        each["specificity"].append(metrics.recall_score(~own, ~mine, sample_weight=w))
        each["f1"].append(metrics.f1_score(own, mine, sample_weight=w))
    for name, values in each.items():
        out[f"{name}_macro"] = float(np.mean(values))
        out |= {f"{name}/{NAMES[c]}": v for c, v in enumerate(values)}
    return out


@pytest.mark.parametrize("k", [2, 3])
def test_every_score_is_scikit_learns_with_ties_and_weights(k):
    y, p, w = cohort(k)
    both = np.stack([np.ones(y.size), w])
    found = dict(classification_set(ClassifiedRows.of(y, p, NAMES[:k])).values(both))
    ece = found.pop("ece")
    for row, weights in enumerate(both):
        expected = scikit_learns(y, p, weights)
        assert set(expected) == set(found)
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), name
        assert ece[row] == pytest.approx(calibration_error_by_loop(y, p, weights), abs=1e-12)


def calibration_error_by_loop(y: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    total, confidence = 0.0, p.max(axis=1)
    for b in range(15):
        rows = [i for i in range(y.size) if (b == 0 or confidence[i] > b / 15) and confidence[i] <= (b + 1) / 15]
        total += abs(sum(w[i] * ((p[i].argmax() == y[i]) - confidence[i]) for i in rows))
    return total / w.sum()


def test_binary_scores_are_those_of_the_positive_class_and_of_scikit_learns_brier():
    y, p, _ = cohort(2)
    report = classification_report(y, p, NAMES[:2], resamples=20)
    assert report.overall["f1"] == report.per_class["in situ"]["f1"]
    assert report.overall["precision"].value == pytest.approx(metrics.precision_score(y, p.argmax(1)), abs=1e-12)
    assert report.overall["specificity"].value == pytest.approx(
        metrics.recall_score(y, p.argmax(1), pos_label=0), abs=1e-12
    )
    assert report.overall["brier"].value == pytest.approx(metrics.brier_score_loss(y, p[:, 1]), abs=1e-12)
    assert report.matrix == metrics.confusion_matrix(y, p.argmax(1)).tolist()


def test_a_missing_class_is_null_with_its_reason_and_leaves_the_rest():
    y, p, _ = cohort(3)
    here = y != 2
    report = classification_report(y[here], p[here], NAMES, resamples=50)
    for name in ("auroc_macro", "balanced_accuracy", "recall_macro", "f1_macro"):
        assert report.overall[name].value is None and "'invasive' has no rows" in (report.overall[name].reason or "")
    assert report.per_class["invasive"]["auroc"].reason == "class 'invasive' has no rows"
    own = metrics.roc_auc_score(y[here] == 0, p[here, 0])
    assert report.per_class["benign"]["auroc"].value == pytest.approx(own, abs=1e-12)
    assert report.overall["accuracy"].low is not None


def test_one_class_and_one_prediction_are_null_with_a_reason():
    report = classification_report([1, 1, 1], np.tile([0.2, 0.8], (3, 1)), ("no", "yes"), resamples=20)
    assert report.overall["auroc"].value is None and report.overall["auroc"].reason == "all rows are of class 'yes'"
    assert report.overall["mcc"].reason == "all rows are of class 'yes'; all rows are predicted as 'yes'"
    assert report.per_class["no"]["precision"].reason == "no row is predicted as 'no'"
    assert report.overall["recall"].value == report.overall["accuracy"].value == 1.0
    json.dumps(report.as_json(), allow_nan=False)


def test_a_class_that_is_never_predicted_has_an_f1_of_zero_and_no_precision():
    report = classification_report([0, 0, 1, 1], np.tile([0.8, 0.2], (4, 1)), ("no", "yes"), resamples=20)
    assert report.overall["f1"].value == 0.0 and report.overall["precision"].value is None
    assert report.overall["precision_macro"].reason == "no row is predicted as 'yes'"


def test_one_cluster_gives_values_without_intervals():
    y, p, _ = cohort(3)
    report = classification_report(y, p, NAMES, clusters=["patient"] * y.size)
    accuracy = report.overall["accuracy"]
    assert accuracy.value is not None and accuracy.low is None and accuracy.clusters == 1
    assert accuracy.reason == "an interval needs at least two clusters, found 1"


def test_a_report_is_strict_json_and_the_order_of_rows_changes_no_estimate():
    y, p, _ = cohort(3)
    patients = np.arange(y.size) // 3
    report = classification_report(y, p, NAMES, patients, resamples=100)
    turned = classification_report(y[::-1], p[::-1], NAMES, patients[::-1], resamples=100)
    text = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert text["per_class"]["in situ"]["auroc"]["clusters"] == 30
    for name, one in report.overall.items():
        other = turned.overall[name]
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_renaming_the_label_map_moves_each_score_with_its_name():
    y, p, _ = cohort(3)
    order = np.array([2, 0, 1])
    one = classification_report(y, p, NAMES, resamples=20)
    other = classification_report(np.argsort(order)[y], p[:, order], [NAMES[c] for c in order], resamples=20)
    for c in NAMES:
        assert one.per_class[c]["auroc"] == other.per_class[c]["auroc"]
    assert one.overall["auroc_macro"].value == pytest.approx(other.overall["auroc_macro"].value, abs=1e-12)


@pytest.mark.parametrize(
    ("truth", "p", "names", "message"),
    [
        ([0, 2], [[0.5, 0.5]] * 2, "ab", "truth must be in 0 … 1, found 2 in row 1"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.7]], "ab", "sum to 1.* in row 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.7]], "ab", "in row 1"),
        ([0, 1], [[0.5, 0.5]], "ab", "must be"),
        ([], np.zeros((0, 2)), "ab", "N > 0"),
        ([0, 1], [[0.5, 0.5]] * 2, "aa", "two different class names"),
    ],
)
def test_what_is_no_classification_is_refused(truth, p, names, message):
    with pytest.raises(ValueError, match=message):
        classification_report(truth, p, list(names))
