"""A forest plot of the differences between models: a panel per pair, a line per score with its interval.

To the right is better for the first model, also for scores of which less is better. Not here: the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mil.judging.page import name_of
from pathray.draw.canvas import ACCENTS, INK, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png

SHOWN = (
    "auroc", "auroc_macro", "average_precision", "average_precision_macro", "balanced_accuracy", "accuracy", "f1",
    "f1_macro", "mcc", "kappa", "brier", "log_loss", "ece", "r2", "pearson", "mae",
)  # fmt: skip
MOST_PAIRS, COLUMNS, ALPHA = 12, 3, 0.05
Json = dict[str, Any]


def draw_forest(compared: Json) -> bytes:
    """A PNG of the first `MOST_PAIRS` pairs."""
    pairs = compared["pairs"][:MOST_PAIRS]
    names = [name for name in SHOWN if name in pairs[0]["scores"]]
    columns = min(COLUMNS, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = new_figure(2.4 + 4.6 * columns, lines * (1.5 + 0.34 * len(names)), 120)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for i, panel in enumerate(axes.flat):
        if i >= len(pairs):
            panel.set_visible(False)
            continue
        _draw_pair(panel, pairs[i], names)
    figure.tight_layout(w_pad=2.0, h_pad=2.0)
    return to_png(figure)


def _draw_pair(axes: Any, pair: Json, names: Sequence[str]) -> None:
    axes.axvline(0, color=MUTED, lw=1, ls="--")
    for row, name in enumerate(names):
        _draw_line(axes, row, pair["scores"][name])
    axes.set_yticks(range(len(names)), [_label(name, pair["scores"][name]) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    low, high = axes.get_xlim()
    most = max(abs(low), abs(high), 0.01)
    axes.set_xlim(-most, most)
    plain_frame(axes)
    axes.grid(axis="y", visible=False)
    a, b = (plain_text(pair[key], 24) for key in ("a", "b"))
    axes.set_title(f"{a} − {b}", loc="left", fontsize=11.5, color=INK)
    axes.set_xlabel(f"← {b} is better      {a} is better →", fontsize=9, color=MUTED)


def _draw_line(axes: Any, row: int, score: Json) -> None:
    """A point with its interval: filled where it is significant after Holm's correction."""
    found, sign = score["difference"], -1 if score["lower_is_better"] else 1
    if found["value"] is None:
        axes.text(0, row, " not defined", va="center", fontsize=8.5, color=MUTED)
        return
    clear = score["p_holm"] is not None and score["p_holm"] < ALPHA
    colour = ACCENTS[0] if clear else MUTED
    if found["low"] is not None:
        axes.plot([sign * found["low"], sign * found["high"]], [row, row], color=colour, lw=2)
    axes.plot([sign * found["value"]], [row], "o", color=colour, mfc=colour if clear else "white", ms=7)


def _label(name: str, score: Json) -> str:
    return name_of(name) + (" (less is better)" if score["lower_is_better"] else "")
