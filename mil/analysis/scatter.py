"""Scatter plots of slides: a panel per space or per colouring. Not here: their coordinates (.embeddings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mil.analysis.embeddings import Space
from pathray.draw.canvas import ACCENTS, INK, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png

COLUMNS, MOST_PANELS, MOST_NAMES = 3, 12, 8
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_scatter(panels: Sequence[tuple[str, Space, Mapping[str, str]]], title: str) -> bytes:
    """A PNG of panels (title, space, each slide's value): colours and marks by value; by shade where values are many
    numbers."""
    panels = panels[:MOST_PANELS]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(4.4 * columns + 0.4, 4.2 * lines + 0.5, 110)
    figure.suptitle(plain_text(title), x=0.02, ha="left", fontsize=12, color=INK)
    axes = figure.subplots(lines, columns, squeeze=False)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    for panel, (name, space, values) in zip(axes.flat, panels, strict=False):
        _draw(panel, name, space, values)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / (4.2 * lines)))
    return to_png(figure)


def _draw(axes: Any, name: str, space: Space, values: Mapping[str, str]) -> None:
    own = np.array([values.get(slide, "") or "unknown" for slide in space.names], np.str_)
    points = space.embedding.points
    numbers = _numbers(own)
    if numbers is not None:
        drawn = axes.scatter(points[:, 0], points[:, 1], c=numbers, s=26, cmap="viridis")
        axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    else:
        _draw_groups(axes, points, own)
    plain_frame(axes)
    axes.grid(visible=False)
    axes.set_title(plain_text(name, 60), loc="left", fontsize=10.5, color=INK)
    shares = space.embedding.explained
    for axis, label in enumerate(("x", "y")):
        said = f"{label} of UMAP" if shares is None else f"component {axis + 1} ({shares[axis]:.0%} of the variance)"
        getattr(axes, f"set_{label}label")(said, fontsize=8.5, color=MUTED)


def _draw_groups(axes: Any, points: Any, own: Any) -> None:
    names, counts = np.unique(own, return_counts=True)
    shown = sorted(names[np.argsort(-counts, kind="stable")][:MOST_NAMES].tolist())
    rest = ~np.isin(own, shown)
    if rest.any():
        axes.scatter(points[rest, 0], points[rest, 1], s=14, color=MUTED, alpha=0.4, label=f"{rest.sum()} others")
    for i, name in enumerate(shown):
        rows = own == name
        mark, colour = MARKERS[i % len(MARKERS)], ACCENTS[i % len(ACCENTS)]
        label = f"{plain_text(name, 24)} ({rows.sum()})"
        axes.scatter(points[rows, 0], points[rows, 1], s=26, color=colour, marker=mark, alpha=0.8, label=label)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _numbers(own: Any) -> Any:
    """The values as numbers where they are more numbers than there are colours."""
    if np.unique(own).size <= MOST_NAMES:
        return None
    try:
        return own.astype(np.float64)
    except ValueError:
        return None
