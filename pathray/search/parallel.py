"""Draws trials as lines through parallel axes: one per varied key, then the objective with its better end on top.

Colour shows the objective. Dashed lines were stopped early, dotted ones failed, the best one is bold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.search.leaderboard import FAILED, FINISHED, STOPPED, UNFINISHED, Entry, best_of, rank, short
from pathray.search.objective import Objective
from pathray.search.space import Dimension

WORST, MIDDLE, GOOD = ACCENTS[2], FAINT, ACCENTS[0]
STYLES: dict[str, Any] = {FINISHED: "-", STOPPED: (0, (4, 2)), FAILED: (0, (1, 2)), UNFINISHED: (0, (6, 1.5, 1, 1.5))}
LABELS = {FINISHED: "finished", STOPPED: "stopped early", FAILED: "failed", UNFINISHED: "not finished"}
SPREAD = 0.05  # fraction of an axis over which lines of one choice are spread
LOG_FROM = 20.0  # the objective's axis is logarithmic above this ratio of largest to smallest


@dataclass(frozen=True)
class Axis:
    """`place` maps a value to 0 … 1 from below; `ticks` are (place, label)."""

    title: str
    place: Callable[[Any], float]
    ticks: tuple[tuple[float, str], ...]
    note: str = ""
    categorical: bool = False
    last: bool = False  # its labels are on the right


def draw_parallel(
    entries: Sequence[Entry], space: Mapping[str, Dimension], objective: Objective, title: str, *, scale: float = 1.0
) -> bytes:
    """Draw a PNG. Without trials the axes are empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [axis_of(dimension) for dimension in space.values()]
    columns.append(objective_axis(entries, objective))
    figure = Figure(figsize=(1.9 + 1.75 * len(columns), 5.4), dpi=100 * scale, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.03, 0.14, 0.94, 0.62))
    axes.set(xlim=(-0.5, len(columns) - 0.55), ylim=(-0.06, 1.06))
    axes.axis("off")
    for x, column in enumerate(columns):
        _draw_axis(axes, x, column)
    best = best_of(entries, objective)
    for entry in reversed(rank(entries, objective)):
        _draw_trial(axes, columns, entry, entry is best, _spread(entries, entry))
    figure.text(0.03, 0.955, title, ha="left", va="top", fontsize=15, fontweight="bold", color=INK)
    figure.text(0.03, 0.885, _subtitle(best, objective), ha="left", va="top", fontsize=9.5, color=MUTED)
    _legend(figure, entries, best)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def axis_of(dimension: Dimension) -> Axis:
    """The axis of a varied key: choices evenly spaced, ranges linear or (`loguniform`) logarithmic."""
    if dimension.categorical:
        choices = list(dimension.values)
        places = [i / (len(choices) - 1) if len(choices) > 1 else 0.5 for i in range(len(choices))]
        ticks = tuple(zip(places, map(short, choices), strict=True))
        return Axis(dimension.key, lambda value: places[choices.index(value)], ticks, categorical=True)
    low, high = (float(end) for end in dimension.probes)
    return _numeric(dimension.key, low, high, log=dimension.kind == "loguniform")


def objective_axis(entries: Sequence[Entry], objective: Objective) -> Axis:
    values = [entry.best[1] for entry in entries if entry.best is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    log = low > 0 and high / low > LOG_FROM
    note = "best of the run" + (", log" if log else "")
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    axis = _numeric(objective.metric, low, high, log=log, down=objective.mode == "min")
    return Axis(axis.title, axis.place, axis.ticks, note, last=True)


def _numeric(title: str, low: float, high: float, *, log: bool = False, down: bool = False) -> Axis:
    from matplotlib.ticker import MaxNLocator

    if log:
        decades = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        marks = [10.0**n for n in decades]
        if len(marks) < 3:
            marks = [m * 10.0**n for n in range(math.floor(math.log10(low)), decades.stop + 1) for m in (1, 2, 5)]
    else:
        marks = list(MaxNLocator(5).tick_values(low, high))

    def place(value: Any) -> float:
        x, a, b = (math.log(v) for v in (value, low, high)) if log else (float(value), low, high)
        share = (x - a) / (b - a) if b > a else 0.5
        return 1 - share if down else share

    slack = 1e-9 * (high - low)
    inside = [mark for mark in marks if low - slack <= mark <= high + slack]
    return Axis(title, place, tuple((place(mark), f"{mark:.6g}") for mark in inside), "log" if log else "")


def _draw_axis(axes: Any, x: int, column: Axis) -> None:
    axes.plot([x, x], [-0.03, 1.03], color=FAINT, linewidth=1.4, zorder=1, solid_capstyle="round")
    for place, label in column.ticks:
        side, align = (1, "left") if column.last else (-1, "right")
        axes.plot([x, x + 0.025 * side], [place, place], color=MUTED, linewidth=0.9, zorder=1)
        text = axes.text(x + 0.05 * side, place, label, ha=align, va="center", fontsize=8.5, color=MUTED, zorder=6)
        text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8})
    section, _, name = column.title.rpartition("." if "/" not in column.title else "/")
    axes.text(x, 1.10, name, ha="center", va="bottom", fontsize=10, fontweight="bold", color=INK)
    below = " · ".join(filter(None, (section, column.note)))
    axes.text(x, -0.075, below, ha="center", va="top", fontsize=8.5, color=MUTED)


def _draw_trial(axes: Any, columns: Sequence[Axis], entry: Entry, best: bool, spread: float) -> None:
    points = []
    for x, column in enumerate(columns[:-1]):
        if column.title in entry.values:
            points.append((x, column.place(entry.values[column.title]) + (spread if column.categorical else 0.0)))
    colour: Any = MUTED
    if entry.best is not None and entry.status != FAILED:
        place = columns[-1].place(entry.best[1])
        points.append((len(columns) - 1, place))
        colour = INK if best else colour_at(place)
    if not points:
        return
    style: dict[str, Any] = {"linestyle": STYLES[entry.status], "color": colour, "zorder": 5 if best else 3}
    style |= {"linewidth": 3.2 if best else 1.6, "alpha": 1.0 if best else 0.85}
    _curve(axes, points, style)
    at = points[-1]
    marker = "x" if entry.status == FAILED else "o"
    axes.plot([at[0]], [at[1]], marker=marker, markersize=7 if best else 4.5, color=colour, zorder=style["zorder"])


def _curve(axes: Any, points: Sequence[tuple[float, float]], style: Mapping[str, Any]) -> None:
    """A curve through the points, horizontal at each axis, so that lines that meet there can be told apart."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        bend = 0.4 * (x1 - x0)
        vertices += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
        codes += [Path.CURVE4] * 3
    axes.add_patch(PathPatch(Path(vertices, codes), fill=False, **style))


def colour_at(place: float) -> tuple[float, float, float]:
    """The colour from the worst (0) over grey to the best (1)."""
    from matplotlib.colors import to_rgb

    place = min(max(place, 0.0), 1.0)
    pair, share = ((WORST, MIDDLE), 2 * place) if place < 0.5 else ((MIDDLE, GOOD), 2 * place - 1)
    (r0, g0, b0), (r1, g1, b1) = map(to_rgb, pair)
    return r0 + share * (r1 - r0), g0 + share * (g1 - g0), b0 + share * (b1 - b0)


def _spread(entries: Sequence[Entry], entry: Entry) -> float:
    place = [other.trial for other in entries].index(entry.trial)
    return SPREAD * (place / (len(entries) - 1) - 0.5) if len(entries) > 1 else 0.0


def _subtitle(best: Entry | None, objective: Objective) -> str:
    way = "lower is better" if objective.mode == "min" else "higher is better"
    if best is None or best.best is None:
        return f"{objective.metric}, {way}; no trial has it yet"
    return f"{objective.metric}, {way}. Best: trial {best.trial}, {best.best[1]:.5g} at {best.best[0]:,} images"


def _legend(figure: Any, entries: Sequence[Entry], best: Entry | None) -> None:
    from matplotlib.lines import Line2D

    shown = [status for status in STYLES if any(entry.status == status for entry in entries)]
    handles = [Line2D([], [], color=INK, linewidth=3.2, label="best")] if best is not None else []
    handles += [
        Line2D([], [], color=MUTED if s == FAILED else GOOD, linewidth=1.6, linestyle=STYLES[s], label=LABELS[s])
        for s in shown
    ]
    ramp = [Line2D([], [], color=colour_at(p), linewidth=4, label=t) for p, t in ((1.0, "better"), (0.0, "worse"))]
    figure.legend(
        handles=handles + (ramp if len(entries) > 1 else []),
        loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=8, frameon=False, fontsize=9, labelcolor=MUTED,
        handlelength=2.6, columnspacing=1.6,
    )  # fmt: skip
