"""Pictures of a robustness report: metrics over images seen, accuracy over correlation, embeddings by class and centre.

Not here: the page around them (pathray.evaluation.report), other curves (pathray.draw.charts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.draw.charts import X, curve, plain_axes
from pathray.errors import UserError
from pathray.evaluation.projection import Saved

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

FAILED = "#b3001b"  # of nothing else
COLUMNS = 4
TITLE = 38  # characters above a panel
SPLIT = re.compile(r"(acc_id|acc_ood|cramers_v)_(\d+)")
TABLE_ONLY = ("ri_k", "ari_class", "ari_center")

GROUPS = (  # colours, then the same with the next marker; those that lines of datasets have come last
    "#c2337b", "#f2b705", "#6b4fbb", "#7a9e00", "#8c94a3", "#d1495b",
    "#0b6bcb", "#e8860c", "#0a9d6c", "#00a9b7", "#8a6d00", "#111827",
)  # fmt: skip
MARKERS = "o^s"
LEAST = 0.1  # of an axis: what is smaller than that is mostly chance, and must not look like a cliff
LEGEND = 34  # groups that are told apart; the smallest others are grey


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
class Named:
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


def named(rows: Sequence[Row]) -> list[Named]:
    """The metrics with a number in the rows, ends of intervals and the tuning's own figures left out: by plugin,
    dataset, and in the order that they are explained in."""
    found = set()
    for row in rows:
        for key, value in row.items():
            plugin, _, rest = key.partition("/")
            dataset, _, metric = rest.rpartition("/")
            if dataset and plugin != "tune" and isinstance(value, int | float) and not _is_end(metric, key, row):
                found.add(Named(plugin, dataset, metric))
    order = list(MEANINGS)
    rank = {name: (order.index(name) if name in order else len(order)) for name in {n.metric for n in found}}
    return sorted(found, key=lambda n: (n.plugin, n.dataset, rank[n.metric], n.metric))


def draw_robustness(rows: Sequence[Row], title: str, *, best_images: int | None = None) -> bytes:
    """A PNG: a panel per metric over images seen, a line per dataset with its interval, failed and dropped evaluations
    on the axis; then accuracy over Cramér's V, a line per evaluation. UserError when no row has a metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: row[X])
    metrics = named(rows)
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
    wraps = _key_lines([len(text(d, 40)) for d in colours], 4.0 * columns)
    top = 0.85 + 0.24 * (wraps - 1)
    height = 0.4 + top + 2.9 * lines
    figure = Figure(figsize=(4.0 * columns, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.14 / height, text(title), va="top", fontsize=15, fontweight="bold", color=INK)
    for i, (plugin, metric) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        _metric(axes, rows, plugin, metric, colours, best_images)
    for i, split in enumerate(splits):
        _splits(figure.add_subplot(lines, columns, len(panels) + i + 1), rows, split, colours[split[1]], best_images)
    _key(figure, rows, colours, best_images, 1 - 0.48 / height, wraps)
    figure.tight_layout(rect=(0, 0, 1, 1 - top / height), h_pad=2.2, w_pad=2.0)
    return _png(figure)


def draw_embedding(saved: Saved, title: str) -> bytes:
    """A PNG of one embedding twice, on the same axes: coloured by class, and by centre."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.6, 5.1), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.012, 0.975, text(title), va="top", fontsize=13, fontweight="bold", color=INK)
    hollow = saved.subset == "OOD"
    names = _axis_names(saved)
    for i, (what, groups) in enumerate((("class", saved.labels), ("centre", saved.centers))):
        axes = figure.add_axes((0.03 + 0.5 * i, 0.07, 0.315, 0.76))
        axes.set_title(f"by {what}", loc="left", fontsize=11.5, fontweight="bold", color=INK)
        classes = min(LEGEND, np.unique(saved.labels).size)  # a centre never has the colour of a class
        _scatter(axes, saved.embedding.points, groups, hollow, shift=classes * i)
        axes.set_xlabel(names[0], fontsize=9, color=MUTED)
        axes.set_ylabel(names[1], fontsize=9, color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    if hollow.any():
        figure.text(0.988, 0.97, "hollow: out-of-domain", va="top", ha="right", fontsize=9, color=MUTED)
    return _png(figure)


def text(words: str, longest: int = 200) -> str:
    """Words of the user's as matplotlib shows them as they are: a dollar sign would begin a formula."""
    return (words if len(words) <= longest else words[: longest - 1] + "…").replace("$", r"\$")


def _is_end(metric: str, key: str, row: Row) -> bool:
    stem, _, end = metric.rpartition("_")
    return end in ("low", "high") and key.removesuffix(f"_{end}") in row and bool(stem)


def _is_headline(metric: str) -> bool:
    return metric not in TABLE_ONLY and not SPLIT.fullmatch(metric)


def _metric(
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
    _titled(axes, meaning.title if meaning else metric, plugin if meaning is None else meaning.best)
    if metric.startswith("apd_"):
        axes.axhline(0, color=MUTED, linewidth=0.9)
    for status, marker, colour in (("failed", "x", FAILED), ("dropped", "o", MUTED)):
        if at := [row[X] for row in rows if row.get("status") == status]:  # nothing drawn unclipped upsets the layout
            style = {"markersize": 6, "markerfacecolor": "white", "markeredgewidth": 1.4, "clip_on": False, "zorder": 5}
            axes.plot(at, [0] * len(at), marker, color=colour, transform=axes.get_xaxis_transform(), **style)
    if best_images is not None:
        axes.axvline(best_images, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
    first, last = rows[0][X], rows[-1][X]
    margin = 0.04 * (last - first) or max(1.0, 0.1 * last)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("images seen", fontsize=9, color=MUTED)
    plain_axes(axes)
    if meaning:
        _scaled(axes, -np.inf if metric.startswith("apd_") else -1.0 if metric == "clustering_score" else 0.0)


def _scaled(axes: Any, lowest: float = 0.0) -> None:
    """No axis is shorter than LEAST, none goes beyond what the metric can be."""
    low, high = axes.get_ylim()
    short = max(0.0, LEAST - (high - low)) / 2
    axes.set_ylim(max(low - short, lowest - 0.02), min(high + short, 1.02))


def _splits(axes: Any, rows: Sequence[Row], split: tuple[str, str, str], own: str, best_images: int | None) -> None:
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
    _titled(axes, text(dataset, TITLE - len(ending)) + ending, SPLITS.best)
    axes.set_xlabel("Cramér's V of class and centre in training", fontsize=9, color=MUTED)
    plain_axes(axes)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlim(-0.04, 1.04)
    _scaled(axes)
    axes.legend(fontsize=8, frameon=False, labelcolor=MUTED, handlelength=1.4, borderaxespad=0.2, loc="lower left")


def _over_correlation(row: Row, plugin: str, dataset: str, metric: str) -> Floats:
    """`[splits, 2]`: Cramér's V and accuracy of one evaluation, empty where it has none."""
    found, split = [], 0
    while (accuracy := row.get(f"{plugin}/{dataset}/{metric}_{split}")) is not None:
        found.append((row.get(f"{plugin}/{dataset}/cramers_v_{split}", np.nan), accuracy))
        split += 1
    return np.array(found, np.float64).reshape(-1, 2)


def _titled(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, y=1.1)
    axes.text(0, 1.035, text(below), transform=axes.transAxes, fontsize=8.5, color=MUTED, va="bottom")


def _key_lines(names: Sequence[int], width: float) -> int:
    """Lines that a key of names with so many letters needs on a figure `width` inches wide, its signs included."""
    columns = max(1, int(width / (0.55 + 0.085 * max([30, *names]))))
    return -(-(len(names) + 4) // columns)


def _key(
    figure: Any, rows: Sequence[Row], colours: Mapping[str, str], best_images: int | None, top: float, lines: int
) -> None:
    """What lines and signs mean, once for all panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours.values()]
    labels = [text(dataset, 40) for dataset in colours]
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


def _scatter(axes: Any, points: npt.NDArray[Any], groups: Any, hollow: Any, shift: int) -> None:
    """Points of every group in its colour; in an order that lays no group on top of the others."""
    from matplotlib.lines import Line2D

    names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    told = np.sort(np.argsort(-counts, kind="stable")[:LEGEND])
    place = {int(group): i for i, group in enumerate(told)}
    size = float(np.clip(9_000 / max(len(points), 1), 5, 34))
    colour = np.array([_look(place.get(g), shift)[0] for g in range(len(names))])
    marker = np.array([_look(place.get(g), shift)[1] for g in range(len(names))])
    order = np.random.default_rng(0).permutation(len(points))
    for shape in MARKERS:
        for open_ in (False, True):
            rows = order[(marker[codes[order]] == shape) & (hollow[order] == open_)]
            face = "none" if open_ else colour[codes[rows]]
            edge = colour[codes[rows]] if open_ else "none"
            width = 0.9 if open_ else 0
            axes.scatter(*points[rows].T, s=size, c=None, facecolors=face, edgecolors=edge, linewidths=width,
                         marker=shape, alpha=0.75)  # fmt: skip
    handles, labels = [], []
    for group in told:
        shown, shape = _look(place[int(group)], shift)
        handles.append(Line2D([], [], color=shown, marker=shape, linestyle="", markersize=6))
        labels.append(f"{text(str(names[group]), 20 if len(told) <= 17 else 9)} ({counts[group]:,})")
    if len(told) < len(names):
        handles.append(Line2D([], [], color=FAINT, marker="o", linestyle="", markersize=6))
        labels.append(f"{len(names) - len(told)} others")
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8.5 if len(told) <= 17 else 7.5,
        frameon=False, labelcolor=INK, handletextpad=0.1, ncols=1 if len(told) <= 17 else 2, columnspacing=0.6,
    )  # fmt: skip
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _look(place: int | None, shift: int) -> tuple[str, str]:
    if place is None:
        return FAINT, "o"
    at = place + shift
    return GROUPS[at % len(GROUPS)], MARKERS[at // len(GROUPS) % len(MARKERS)]


def _axis_names(saved: Saved) -> tuple[str, str]:
    if saved.embedding.explained is None:
        return f"{saved.embedding.method} 1", f"{saved.embedding.method} 2"
    one, two = (f"PC {i + 1}, {share:.0%} of the variance" for i, share in enumerate(saved.embedding.explained))
    return one, two


def _png(figure: Any) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
