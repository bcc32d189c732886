"""The curves of a robustness report: metrics over images seen, accuracy over the correlation of class and centre.

Not here: the page around them (pathray.evaluation.report), embeddings (pathray.evaluation.embedding_chart), other
curves (pathray.draw.charts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import ACCENTS, INK, MUTED
from pathray.draw.charts import X, curve, plain_axes
from pathray.draw.figures import new_figure, plain_text, to_png
from pathray.errors import UserError
from pathray.evaluation.metric_names import MEANINGS, SPLIT, SPLITS, limits, list_metrics

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

FAILED = "#b3001b"  # nothing else has this colour
COLUMNS = 4
TITLE = 38  # characters above a panel
TABLE_ONLY = ("ri_k", "ari_class", "ari_center")
LEAST = 0.1  # of an axis: what is smaller than that is mostly chance, and must not look like a cliff


def draw_robustness(rows: Sequence[Row], title: str, *, best_images: int | None = None) -> bytes:
    """A PNG: a panel per metric over images seen, a line per dataset with its interval, failed and dropped evaluations
    on the axis; then accuracy over Cramér's V, a line per evaluation. UserError when no row has a metric."""
    rows = sorted(rows, key=lambda row: row[X])
    metrics = list_metrics(rows)
    panels = list(dict.fromkeys((n.plugin, n.metric) for n in metrics if _is_headline(n.metric)))
    order = list(MEANINGS)
    panels.sort(key=lambda p: (p[0] != "pathorob", order.index(p[1]) if p[1] in order else len(order), p))
    splits = list(dict.fromkeys((n.plugin, n.dataset, m[1]) for n in metrics if (m := SPLIT.fullmatch(n.metric))))
    splits = [s for s in splits if s[2] != "cramers_v"]
    if not panels and not splits:
        raise UserError("no metric to draw was logged yet", expected="rows with PLUGIN/DATASET/METRIC")
    colours = {d: ACCENTS[i % len(ACCENTS)] for i, d in enumerate(sorted({n.dataset for n in metrics}))}
    columns = min(COLUMNS, max(2, len(panels) + len(splits)))
    lines = -(-(len(panels) + len(splits)) // columns)
    wraps = _count_key_lines([len(plain_text(d, 40)) for d in colours], 4.0 * columns)
    top = 0.85 + 0.24 * (wraps - 1)
    height = 0.4 + top + 2.9 * lines
    figure = new_figure(4.0 * columns, height, dpi=120)
    figure.text(0.012, 1 - 0.14 / height, plain_text(title), va="top", fontsize=15, fontweight="bold", color=INK)
    for i, (plugin, metric) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        _draw_metric(axes, rows, plugin, metric, colours, best_images)
    for i, split in enumerate(splits):
        _draw_splits(
            figure.add_subplot(lines, columns, len(panels) + i + 1), rows, split, colours[split[1]], best_images
        )
    _draw_key(figure, rows, colours, best_images, 1 - 0.48 / height, wraps)
    figure.tight_layout(rect=(0, 0, 1, 1 - top / height), h_pad=2.2, w_pad=2.0)
    return to_png(figure)


def _is_headline(metric: str) -> bool:
    return metric not in TABLE_ONLY and not SPLIT.fullmatch(metric)


def _draw_metric(
    axes: Any, rows: Sequence[Row], plugin: str, metric: str, colours: Mapping[str, str], best_images: int | None
) -> None:
    for i, (dataset, colour) in enumerate(colours.items()):
        name = f"{plugin}/{dataset}/{metric}"
        x, y = curve(rows, name)
        (x_low, low), (x_high, high) = curve(rows, f"{name}_low"), curve(rows, f"{name}_high")
        if x_low.size and np.array_equal(x_low, x_high):
            low, high = (np.clip(ends, *limits(metric)) for ends in (low, high))
            axes.fill_between(x_low, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.vlines(x_low, low, high, color=colour, alpha=0.3, linewidth=1.2)
        width = 1.6 + 1.8 * (len(colours) - 1 - i) / max(1, len(colours) - 1)  # equal lines do not hide each other
        axes.plot(x, y, color=colour, linewidth=width, marker="o" if x.size < 40 else "", markersize=3.5)
        if best_images in x:
            axes.plot(best_images, y[x == best_images][-1], "*", color=colour, markersize=11, zorder=4)
    meaning = MEANINGS.get(metric)
    _add_titles(axes, meaning.title if meaning else metric, plugin if meaning is None else meaning.best)
    if metric.startswith("apd_"):
        axes.axhline(0, color=MUTED, linewidth=0.9)
    _mark_failures(axes, rows)
    if best_images is not None:
        axes.axvline(best_images, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
    first, last = rows[0][X], rows[-1][X]
    margin = 0.04 * (last - first) or max(1.0, 0.1 * last)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("images seen", fontsize=9, color=MUTED)
    plain_axes(axes)
    if meaning:
        _limit_axis(axes, -np.inf if metric.startswith("apd_") else -1.0 if metric == "clustering_score" else 0.0)


def _mark_failures(axes: Any, rows: Sequence[Row]) -> None:
    """Failed and dropped evaluations as signs on the horizontal axis."""
    for status, marker, colour in (("failed", "x", FAILED), ("dropped", "o", MUTED)):
        if at := [row[X] for row in rows if row.get("status") == status]:  # nothing drawn unclipped upsets the layout
            style = {"markersize": 6, "markerfacecolor": "white", "markeredgewidth": 1.4, "clip_on": False, "zorder": 5}
            axes.plot(at, [0] * len(at), marker, color=colour, transform=axes.get_xaxis_transform(), **style)


def _limit_axis(axes: Any, lowest: float = 0.0) -> None:
    """No axis is shorter than LEAST, none goes beyond what the metric can be."""
    low, high = axes.get_ylim()
    short = max(0.0, LEAST - (high - low)) / 2
    axes.set_ylim(max(low - short, lowest - 0.02), min(high + short, 1.02))


def _draw_splits(
    axes: Any, rows: Sequence[Row], split: tuple[str, str, str], own: str, best_images: int | None
) -> None:
    """Early evaluations are pale, late ones dark; the first, the best and the newest are named."""
    plugin, dataset, metric = split
    drawn = [(row, line) for row in rows if (line := _over_correlation(row, plugin, dataset, metric)).size]
    shades = np.linspace(0.25, 1.0, len(drawn))
    for i, (row, line) in enumerate(drawn):
        newest, best = i == len(drawn) - 1, row[X] == best_images
        words = [w for w, there in (("first", i == 0), ("best", best), ("newest", newest)) if there]
        colour = INK if best else own
        label = f"{row[X]:,} ({', '.join(words)})" if words else "_nolegend_"
        alpha = 1.0 if best else float(shades[i]) if len(drawn) > 1 else 1.0
        width = 1.8 if words else 0.9
        axes.plot(line[:, 0], line[:, 1], color=colour, alpha=alpha, linewidth=width, label=label, marker="o", ms=3)
    where = "in-domain" if metric == "acc_id" else "out-of-domain"
    ending = f": accuracy, {where}"
    _add_titles(axes, plain_text(dataset, TITLE - len(ending)) + ending, SPLITS.best)
    axes.set_xlabel("Cramér's V of class and centre in training", fontsize=9, color=MUTED)
    plain_axes(axes)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlim(-0.04, 1.04)
    _limit_axis(axes)
    axes.legend(fontsize=8, frameon=False, labelcolor=MUTED, handlelength=1.4, borderaxespad=0.2, loc="lower left")


def _over_correlation(row: Row, plugin: str, dataset: str, metric: str) -> Floats:
    """`[splits, 2]`: Cramér's V and accuracy of one evaluation, empty where it has none."""
    found, split = [], 0
    while (accuracy := row.get(f"{plugin}/{dataset}/{metric}_{split}")) is not None:
        found.append((row.get(f"{plugin}/{dataset}/cramers_v_{split}", np.nan), accuracy))
        split += 1
    return np.array(found, np.float64).reshape(-1, 2)


def _add_titles(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, y=1.1)
    axes.text(0, 1.035, plain_text(below), transform=axes.transAxes, fontsize=8.5, color=MUTED, va="bottom")


def _count_key_lines(names: Sequence[int], width: float) -> int:
    """Lines that the key takes on a figure `width` inches wide. `names`: the number of letters of each name."""
    columns = max(1, int(width / (0.55 + 0.085 * max([30, *names]))))
    return -(-(len(names) + 4) // columns)


def _draw_key(
    figure: Any, rows: Sequence[Row], colours: Mapping[str, str], best_images: int | None, top: float, lines: int
) -> None:
    """What lines and signs mean, once for all panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours.values()]
    labels = [plain_text(dataset, 40) for dataset in colours]
    found = {str(row.get("status")) for row in rows}
    for status, marker, colour in (("failed", "x", FAILED), ("dropped", "o", MUTED)):
        if status in found:
            handles.append(
                Line2D([], [], color=colour, marker=marker, markerfacecolor="white", markeredgewidth=1.4, linestyle="")
            )
            labels.append(f"{status} evaluation")
    if best_images is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), marker="*", markersize=9))
        labels.append(f"best by the selection ({best_images:,} images)")
    handles.append(Line2D([], [], color=MUTED, linewidth=8, alpha=0.25))
    labels.append("95% interval")
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.006, top), ncols=-(-len(handles) // lines), fontsize=9.5,
        frameon=False,
        labelcolor=INK, handlelength=1.6, columnspacing=1.8,
    )  # fmt: skip
