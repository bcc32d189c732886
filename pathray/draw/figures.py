"""A matplotlib figure without a window: make one, put a user's words on it, turn it into a PNG.

Not here: what is drawn (pathray.draw.charts and the sciences' own figures).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any


def new_figure(width: float, height: float, dpi: float) -> Any:
    """An empty white figure of `width` by `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_text(words: str, longest: int = 200) -> str:
    """A user's words as matplotlib shows them unchanged: a dollar sign would begin a formula."""
    return (words if len(words) <= longest else words[: longest - 1] + "…").replace("$", r"\$")


def to_png(figure: Any) -> bytes:
    """The figure as a PNG. The version of matplotlib is left out, so that equal figures give equal bytes."""
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
