"""The picture of one embedding: the same points twice, coloured by class and by centre.

Not here: how features become points (pathray.evaluation.projection).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import FAINT, INK, MUTED
from pathray.draw.figures import new_figure, plain_text, to_png
from pathray.evaluation.projection import Saved

GROUPS = (  # colours, then the same with the next marker; those that lines of datasets have come last
    "#c2337b", "#f2b705", "#6b4fbb", "#7a9e00", "#8c94a3", "#d1495b",
    "#0b6bcb", "#e8860c", "#0a9d6c", "#00a9b7", "#8a6d00", "#111827",
)  # fmt: skip
MARKERS = "o^s"
LEGEND = 34  # groups that are told apart; the smallest others are grey


def draw_embedding(saved: Saved, title: str) -> bytes:
    """A PNG of one embedding twice, on the same axes: coloured by class, and by centre."""
    figure = new_figure(13.6, 5.1, dpi=120)
    figure.text(0.012, 0.975, plain_text(title), va="top", fontsize=13, fontweight="bold", color=INK)
    hollow = saved.subset == "OOD"
    names = _name_axes(saved)
    for i, (what, groups) in enumerate((("class", saved.labels), ("centre", saved.centers))):
        axes = figure.add_axes((0.03 + 0.5 * i, 0.07, 0.315, 0.76))
        axes.set_title(f"by {what}", loc="left", fontsize=11.5, fontweight="bold", color=INK)
        classes = min(LEGEND, np.unique(saved.labels).size)  # a centre never has the colour of a class
        _draw_points(axes, saved.embedding.points, groups, hollow, shift=classes * i)
        axes.set_xlabel(names[0], fontsize=9, color=MUTED)
        axes.set_ylabel(names[1], fontsize=9, color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    if hollow.any():
        figure.text(0.988, 0.97, "hollow: out-of-domain", va="top", ha="right", fontsize=9, color=MUTED)
    return to_png(figure)


def _draw_points(axes: Any, points: npt.NDArray[Any], groups: Any, hollow: Any, shift: int) -> None:
    """Points of every group in its colour; in an order that lays no group on top of the others."""
    names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    told = np.sort(np.argsort(-counts, kind="stable")[:LEGEND])
    place = {int(group): i for i, group in enumerate(told)}
    size = float(np.clip(9_000 / max(len(points), 1), 5, 34))
    colour = np.array([_choose_look(place.get(g), shift)[0] for g in range(len(names))])
    marker = np.array([_choose_look(place.get(g), shift)[1] for g in range(len(names))])
    order = np.random.default_rng(0).permutation(len(points))
    for shape in MARKERS:
        for open_ in (False, True):
            rows = order[(marker[codes[order]] == shape) & (hollow[order] == open_)]
            face = "none" if open_ else colour[codes[rows]]
            edge = colour[codes[rows]] if open_ else "none"
            width = 0.9 if open_ else 0
            axes.scatter(*points[rows].T, s=size, c=None, facecolors=face, edgecolors=edge, linewidths=width,
                         marker=shape, alpha=0.75)  # fmt: skip
    _add_legend(axes, names, counts, told, shift)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _add_legend(axes: Any, names: Any, counts: Any, told: Any, shift: int) -> None:
    """The groups `told` apart with their sizes, and how many others there are."""
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for at, group in enumerate(told):
        shown, shape = _choose_look(at, shift)
        handles.append(Line2D([], [], color=shown, marker=shape, linestyle="", markersize=6))
        labels.append(f"{plain_text(str(names[group]), 20 if len(told) <= 17 else 9)} ({counts[group]:,})")
    if len(told) < len(names):
        handles.append(Line2D([], [], color=FAINT, marker="o", linestyle="", markersize=6))
        labels.append(f"{len(names) - len(told)} others")
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8.5 if len(told) <= 17 else 7.5,
        frameon=False, labelcolor=INK, handletextpad=0.1, ncols=1 if len(told) <= 17 else 2, columnspacing=0.6,
    )  # fmt: skip


def _choose_look(place: int | None, shift: int) -> tuple[str, str]:
    if place is None:
        return FAINT, "o"
    at = place + shift
    return GROUPS[at % len(GROUPS)], MARKERS[at // len(GROUPS) % len(MARKERS)]


def _name_axes(saved: Saved) -> tuple[str, str]:
    if saved.embedding.explained is None:
        return f"{saved.embedding.method} 1", f"{saved.embedding.method} 2"
    one, two = (f"PC {i + 1}, {share:.0%} of the variance" for i, share in enumerate(saved.embedding.explained))
    return one, two
