"""The figures of a judged classifier: ROC, precision and recall, calibration, probabilities, confusion.

Each is a PNG that a clinician can read alone: axes in words, intervals as bands, numbers in the legend. Not here: the
figures' data (mil.judging.scores, pathray.stats.curves).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mil.judging.predictions import Predictions
from mil.judging.scores import events_of
from pathray.draw.canvas import ACCENTS, INK, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png
from pathray.stats.calibrating.bins import reliability_bins
from pathray.stats.curves import Kind, curve

AXES = {
    "roc": ("1 − specificity", "sensitivity"),
    "pr": ("sensitivity (recall)", "positive predictive value (precision)"),
}
Json = dict[str, Any]


def draw_curves(predictions: Predictions, judged: Json, kind: Kind, *, resamples: int = 500, seed: int = 0) -> bytes:
    """ROC or precision-recall curves: of the second of two classes, else of each class against the rest, with 95% bands
    over patients."""
    figure = new_figure(6.4, 5.6, 120)
    axes = figure.add_subplot()
    several = len(predictions.classes) > 2
    scores = judged["slides_as_units"]["per_class"]
    metric = "auroc" if kind == "roc" else "average_precision"
    for k, name in enumerate(predictions.classes):
        if k == 0 and not several:
            continue
        found = curve(
            predictions.truth == k, predictions.values[:, k], kind, predictions.patients, resamples=resamples, seed=seed
        )
        colour = ACCENTS[k % len(ACCENTS)]
        axes.step(found.x, found.y, where="post", color=colour, lw=2, label=_label(name, scores[name][metric]))
        if found.grid and not several:
            axes.fill_between(found.grid, found.low, found.high, color=colour, alpha=0.15, lw=0)
    if kind == "roc":
        axes.plot((0, 1), (0, 1), color=MUTED, lw=1, ls="--")
    title = "Receiver operating characteristic" if kind == "roc" else "Precision and recall"
    _finish(axes, title, *AXES[kind])
    axes.legend(loc="lower right" if kind == "roc" else "lower left", frameon=False, fontsize=9)
    return to_png(figure)


def draw_calibration(predictions: Predictions, judged: Json) -> bytes:
    """How often what was predicted with a probability happened, in bins of equal counts: larger points, more slides."""
    figure = new_figure(6.4, 5.6, 120)
    axes = figure.add_subplot()
    happened, probability = events_of(predictions)
    bins = [b for b in reliability_bins(happened, probability, bins=10, by="count") if b.n]
    axes.plot((0, 1), (0, 1), color=MUTED, lw=1, ls="--", label="perfect calibration")
    x, y = [b.predicted for b in bins], [b.observed for b in bins]
    axes.plot(x, y, color=ACCENTS[0], lw=1.5)
    axes.scatter(x, y, s=[20 + 200 * b.n / len(happened) for b in bins], color=ACCENTS[0], zorder=3)
    ece = judged["slides_as_units"]["overall"]["ece"]
    what = f"of '{predictions.classes[1]}'" if len(predictions.classes) == 2 else "of the likeliest class"
    _finish(axes, f"Calibration: {_label('ECE', ece)}", f"predicted probability {plain_text(what)}", "observed share")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return to_png(figure)


def draw_probabilities(predictions: Predictions) -> bytes:
    """A histogram per true class of the probability of the second of two classes; else of the true class."""
    figure = new_figure(6.4, 4.4, 120)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, 21)
    binary = len(predictions.classes) == 2
    for k, name in enumerate(predictions.classes):
        rows = predictions.truth == k
        values = predictions.values[rows, 1 if binary else k]
        label = f"{plain_text(name)} ({int(rows.sum())} slides)"
        axes.hist(values, edges, color=ACCENTS[k % len(ACCENTS)], alpha=0.55, label=label)
    of = f"probability of '{predictions.classes[1]}'" if binary else "probability of the true class"
    _finish(axes, "Predicted probabilities by true class", plain_text(of), "slides", square=False)
    axes.legend(frameon=False, fontsize=9)
    return to_png(figure)


def draw_confusion(judged: Json) -> bytes:
    """The confusion matrix: counts, and shares of each true class as shades."""
    report = judged["slides_as_units"]
    counts, names = np.array(report["confusion_matrix"]), report["classes"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.2, 1.0 * len(names) + 2.4)
    figure = new_figure(side + 0.6, side, 120)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        colour = "white" if shares[i, j] > 0.55 else INK
        axes.text(j, i, f"{counts[i, j]}\n{shares[i, j]:.0%}", ha="center", va="center", color=colour, fontsize=10)
    ticks = [plain_text(name, 18) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=30 if len(names) > 3 else 0)
    axes.set_yticks(range(len(names)), ticks)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Confusion matrix", loc="left", fontsize=12, color=INK)
    figure.tight_layout()
    return to_png(figure)


def draw_regression(predictions: Predictions) -> bytes:
    """Predicted against true numbers."""
    figure = new_figure(6.0, 5.6, 120)
    axes = figure.add_subplot()
    truth, predicted = predictions.truth, predictions.values[:, 0]
    ends = [float(f(truth)) for f in (np.min, np.max)]
    axes.plot(ends, ends, color=MUTED, lw=1, ls="--")
    axes.scatter(truth, predicted, s=18, color=ACCENTS[0], alpha=0.7)
    _finish(axes, "Predicted and true values", "true", "predicted", square=False)
    return to_png(figure)


def _label(name: str, score: Json) -> str:
    if score["value"] is None:
        return f"{plain_text(name)}: not defined"
    ends = f" [{score['low']:.3f}, {score['high']:.3f}]" if score["low"] is not None else ""
    return f"{plain_text(name)}: {score['value']:.3f}{ends}"


def _finish(axes: Any, title: str, x: str, y: str, square: bool = True) -> None:
    plain_frame(axes)
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if square:
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
    axes.figure.tight_layout()
