"""The forest plot of a comparison: differences with their intervals, right of zero where the first of a pair is better.

One pair: a row per score. Several: a row per pair, of the primary score. Not here: the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mil.comparison.comparing import Compared, is_lower_better
from mil.judging.page import name_of
from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png

UNBOUNDED = ("log_loss", "mae", "r2")  # their differences would flatten those of scores between 0 and 1
Ends = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A label, the advantage of the first of a pair with its interval over patients, the one over patients and seeds,
    the p-value in words, and whether a difference is shown."""

    label: str
    value: float | None
    inner: Ends | None
    outer: Ends | None
    told: str
    shown: bool


def draw_forest(compared: Compared) -> bytes:
    """PNG. Thick lines are intervals over patients, thin ones over patients and seeds."""
    panels, title, toward = _layout(compared)
    rows = sum(map(len, panels))
    figure = new_figure(8.6, 1.5 + 0.42 * rows + 0.55 * len(panels), 120)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=[len(panel) + 0.6 for panel in panels], hspace=0.4)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[i])
        _draw(axes, panel)
        if i == len(panels) - 1:
            axes.set_xlabel(toward, fontsize=9, color=MUTED)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.3, right=0.72, top=1 - 0.75 / height, bottom=0.75 / height)
    figure.text(0.02, 1 - 0.34 / height, title, fontsize=12, color=INK)
    return to_png(figure)


def _layout(compared: Compared) -> tuple[list[list[Row]], str, str]:
    """Panels of rows, the title, and the label of x."""
    pairs, primary, percent = compared.pairs, compared.primary, f"{compared.level:.0%} intervals"
    if len(pairs) > 1:
        rows = [_row(plain_text(f"{p['a']} − {p['b']}", 34), primary, p["scores"][primary]) for p in pairs]
        return [rows], f"Advantage in {name_of(primary)}, {percent}", "the first of a pair is better  →"
    pair = pairs[0]
    panels: list[list[Row]] = [[], []]
    for name, one in pair["scores"].items():
        note = " (lower is better)" if is_lower_better(name) else ""
        panels[name in UNBOUNDED].append(_row(name_of(name) + note, name, one))
    a, b = (plain_text(pair[key], 40) for key in ("a", "b"))
    title = f"Advantage of {a} over {b}, {percent}"
    return [panel for panel in panels if panel], title, f"←  {b} is better        {a} is better  →"


def _row(label: str, name: str, one: dict[str, Any]) -> Row:
    sign = -1.0 if is_lower_better(name) else 1.0
    difference, seeds = one["difference"], one["with_seeds"]
    if difference["value"] is None:
        return Row(label, None, None, None, "not defined", False)
    p, of = (one["p_holm"], "p") if seeds["difference"] is None else (seeds["p_holm"], "p over seeds")
    return Row(
        label, sign * difference["value"], _ends(difference, sign), _ends(seeds["difference"], sign),
        "no test" if p is None else f"{of} {p_in_words(p)}", one["better"] is not None,
    )  # fmt: skip


def p_in_words(p: float) -> str:
    """
    >>> p_in_words(0.0304), p_in_words(0.0002)
    ('0.030', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _ends(estimate: dict[str, Any] | None, sign: float) -> Ends | None:
    if estimate is None or estimate["low"] is None:
        return None
    low, high = sorted((sign * estimate["low"], sign * estimate["high"]))
    return low, high


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    axes.axvline(0, color=MUTED, lw=1)
    for y, row in enumerate(rows):
        colour = ACCENTS[0] if row.shown else MUTED
        for ends, width in ((row.outer, 1.2), (row.inner, 4.5)):
            if ends is not None:
                axes.plot(ends, (y, y), color=colour, lw=width, solid_capstyle="butt", alpha=0.45 if width > 2 else 1)
        if row.value is not None:
            axes.plot(row.value, y, "o", color=colour, ms=6.5)
        said = row.told if row.value is None else f"{row.value:+.3f}   {row.told}"
        axes.text(1.03, y, said, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    plain_frame(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.tick_params(axis="y", length=0, colors=INK, labelsize=9)
    axes.margins(x=0.08)
