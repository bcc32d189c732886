"""Training curves as one clean figure: a panel per group of metrics, all over images seen. Any science's metrics.jsonl.

A panel whose metrics were never logged is left out. Pictures of samples are pathray.draw.canvas'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.errors import UserError

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

X = "images_seen"
SMOOTH_FROM = 40  # points from which a running mean is drawn over the raw curve
COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """`series` are (metric, label) pairs; `band` two metrics between which the area is shaded."""

    title: str
    series: tuple[tuple[str, str], ...]
    unit: str = ""
    band: tuple[str, str] | None = None
    log: bool = False
    from_zero: bool = False
    low: float | None = None  # values below are drawn there
    smooth: bool = True  # a running mean over many points; not for schedules


def curve(rows: Sequence[Row], metric: str, along: str = X) -> tuple[Floats, Floats]:
    """Images seen (or what the rows are `along`) `[n]` and values `[n]` of a metric, in order, finite ones only."""
    found = [(row[along], row[metric]) for row in rows if along in row and isinstance(row.get(metric), int | float)]
    found = [(x, y) for x, y in found if math.isfinite(y)]
    table = np.array(sorted(found, key=lambda pair: pair[0]), np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def draw_curves(
    rows: Sequence[Row], panels: Sequence[Panel], title: str, *, scale: float = 1.0, along: str = X
) -> bytes:
    """A PNG of all panels that have data, over the images seen or over what the rows are `along`. UserError when none
    has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [p for p in panels if any(curve(rows, metric, along)[0].size for metric, _ in p.series)]
    if not shown:
        wanted = ", ".join(metric for p in panels for metric, _ in p.series)
        raise UserError("no metric to draw was logged yet", expected=f"rows with {along} and one of {wanted}")
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.0 * columns, 0.8 + 2.9 * lines), dpi=100 * scale, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, y=1 - 0.05 / lines, ha="left", fontsize=15, fontweight="bold", color=INK)
    for i, panel in enumerate(shown):
        _draw(figure.add_subplot(lines, columns, i + 1), rows, panel, along)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.06 / lines), h_pad=2.2, w_pad=2.0)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, rows: Sequence[Row], panel: Panel, along: str) -> None:
    if panel.band:
        (x, low), (x_high, high) = (curve(rows, metric, along) for metric in panel.band)
        if x.size and np.array_equal(x, x_high):
            axes.fill_between(x, low, high, color=ACCENTS[0], alpha=0.13, linewidth=0, label="range")
    for i, (metric, label) in enumerate(panel.series):
        x, y = curve(rows, metric, along)
        y = y if panel.low is None else np.maximum(y, panel.low)
        _line(axes, x, y, ACCENTS[i % len(ACCENTS)], label, panel.smooth)
    axes.set_title(panel.title, loc="left", fontsize=11.5, fontweight="bold", color=INK, y=1.08)
    axes.set_ylabel(panel.unit, fontsize=9, color=MUTED)
    axes.set_xlabel(along.replace("_", " "), fontsize=9, color=MUTED)
    if panel.log:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=True)
        axes.yaxis.get_offset_text().set(color=MUTED, fontsize=8.5)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    plain_axes(axes)
    handles = axes.get_legend_handles_labels()[0]
    if len(handles) > 1:
        axes.legend(fontsize=8.5, frameon=False, labelcolor=MUTED, handlelength=1.4, borderaxespad=0.2)


def _line(axes: Any, x: Floats, y: Floats, colour: str, label: str, smooth: bool) -> None:
    if x.size == 0:
        return
    if x.size < SMOOTH_FROM or not smooth:
        axes.plot(x, y, color=colour, linewidth=1.8, label=label, marker="o" if x.size < 12 else "", markersize=3.5)
        return
    axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(x, running_mean(y, max(3, x.size // 20)), color=colour, linewidth=2.0, label=label)


def running_mean(y: Floats, width: int) -> Floats:
    """Centred mean over `width` points, over fewer at the ends.

    >>> running_mean(np.array([0.0, 3.0, 6.0]), 3).tolist()
    [1.5, 3.0, 4.5]
    """
    total = np.concatenate([[0.0], np.cumsum(y)])
    place = np.arange(y.size)
    low, high = np.maximum(place - width // 2, 0), np.minimum(place + width // 2 + 1, y.size)
    mean: Floats = (total[high] - total[low]) / (high - low)
    return mean


def plain_axes(axes: Any) -> None:
    """The plain frame, with whole numbers in thousands and millions along x."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    plain_frame(axes)


def plain_frame(axes: Any) -> None:
    """No lines at the top and the right; faint axes, and a faint grid for y."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def thousands(value: float) -> str:
    """
    >>> thousands(1500), thousands(2_000_000), thousands(64)
    ('1.5k', '2M', '64')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
