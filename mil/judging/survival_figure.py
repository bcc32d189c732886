"""The figure of survival: curves of patients with lower and higher predicted risk, with intervals and those at risk.

Not here: its numbers (mil.judging.survival).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pathray.draw.canvas import ACCENTS, MUTED
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png

TICKS = 6
Json = dict[str, Any]


def draw_survival(judged: Json, time: str = "time") -> bytes:
    """PNG. Below the axis: how many of each group are still at risk."""
    survival = judged["survival"]
    figure = new_figure(6.8, 5.8, 120)
    axes = figure.add_axes((0.13, 0.27, 0.83, 0.65))
    groups: dict[str, Json] = survival["groups"]
    end = max((max(group["curve"]["time"]) for group in groups.values()), default=1.0)
    ticks = np.linspace(0, end, TICKS)
    for k, (name, group) in enumerate(groups.items()):
        colour, curve = ACCENTS[k], group["curve"]
        low, high = _filled(curve["low"]), _filled(curve["high"])
        t, s = np.array([0.0, *curve["time"]]), np.array([1.0, *curve["survival"]])
        label = f"{name}: {group['patients']} patients, {group['events']} events"
        axes.step(t, s, where="post", color=colour, lw=2, label=plain_text(label))
        axes.fill_between(t, [1.0, *low], [1.0, *high], step="post", color=colour, alpha=0.15, lw=0)
        _at_risk(axes, curve, ticks, k, colour)
    axes.set(xlim=(0, end), ylim=(0, 1.02), xlabel=plain_text(time), ylabel="share without the event", xticks=ticks)
    axes.set_xticklabels([f"{tick:.3g}" for tick in ticks])
    axes.set_title(_title(survival), loc="left", fontsize=11)
    plain_frame(axes)
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    return to_png(figure)


def _at_risk(axes: Any, curve: Json, ticks: Any, k: int, colour: Any) -> None:
    time, at_risk = np.array(curve["time"]), np.array([*curve["at_risk"], 0])
    y = -0.2 - 0.06 * k
    axes.text(-0.03, y, "at risk", transform=axes.transAxes, ha="right", va="center", fontsize=8, color=MUTED)
    for tick in ticks:
        count = int(at_risk[np.searchsorted(time, tick, side="left")])
        style = {"ha": "center", "va": "center", "color": colour, "fontsize": 9}
        axes.text(tick, y, str(count), transform=axes.get_xaxis_transform(), **style)


def _title(survival: Json) -> str:
    c, p = survival["c_index"], survival["log_rank"]["p_value"]
    told = "not defined" if c["value"] is None else f"{c['value']:.3f}"
    if c["low"] is not None:
        told += f" [{c['low']:.3f}, {c['high']:.3f}]"
    return f"Survival by predicted risk — C {told}" + ("" if p is None else f", log-rank p {p:.2g}")


def _filled(values: list[float | None]) -> list[float]:
    """Undefined ends of an interval take the last defined one, at first 1."""
    out, last = [], 1.0
    for value in values:
        last = last if value is None else value
        out.append(last)
    return out
