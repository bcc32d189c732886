"""ROC and precision-recall curves of a binary score with pointwise bands from resamples of whole clusters. No torch.

The points are those of the distinct scores; the bands are on a grid. Not here: drawing, areas (pathray.stats.ranking).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pathray.stats.bootstrap import cluster_codes
from pathray.stats.estimates import MOST_UNDEFINED
from pathray.stats.operating_points import binary_rows
from pathray.stats.weights import row_weights

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Kind = Literal["roc", "pr"]
GRID = 101
ROUNDING = 1e-12


@dataclass(frozen=True)
class Curve:
    """Points `x`, `y` `[P]` from the highest threshold down, and the band `low`, `high` `[G]` at `grid` `[G]`.

    ROC: x is the false positive rate, y the true one, and the first point is (0, 0) with the threshold None. PR: x is
    recall, y precision. Points or band are empty where they are not defined, and `reason` says why.
    """

    kind: Kind
    x: list[float]
    y: list[float]
    thresholds: list[float | None]
    grid: list[float]
    low: list[float]
    high: list[float]
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: no NaN, no infinity."""
        return dict(vars(self))


def curve(
    truth: npt.ArrayLike, score: npt.ArrayLike, kind: Kind, clusters: npt.ArrayLike | None = None, *,
    level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> Curve:  # fmt: skip
    """The curve of truth `[N]` (0 or 1) and scores `[N]`, with the pointwise percentile band over clusters `[N]`.

    At a false positive rate x, a resample's ROC has the highest true positive rate of its points up to x. At a recall
    x, its PR curve has the precision of the first point that reaches x, as in step-wise average precision.
    Resamples are those of pathray.stats.estimates for the same seed. ValueError as in `binary_rows`.
    """
    positive, s = binary_rows(truth, score)
    if positive.all() or (kind == "roc" and not positive.any()) or not positive.any():
        return Curve(kind, [], [], [], [], [], [], f"all rows are {'positive' if positive.all() else 'negative'}")
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    x, y = _points(np.ones((1, s.size)), positive, order, last, kind)
    thresholds: list[float | None] = [float(v) for v in s[order][last]]
    points = (x[0].tolist(), y[0].tolist(), [None, *thresholds] if kind == "roc" else thresholds)
    codes = cluster_codes(clusters, s.size)
    count = int(codes.max()) + 1
    if count < 2:
        return Curve(kind, *points, [], [], [], f"a band needs at least two clusters, found {count}")
    grid = np.linspace(0, 1, GRID)
    drawn = np.concatenate(
        [_on_grid(*_points(w, positive, order, last, kind), grid, kind)
         for w in row_weights(codes, count, resamples=resamples, seed=seed)]
    )  # fmt: skip
    undefined = int(np.isnan(drawn[:, 0]).sum())
    if undefined > MOST_UNDEFINED * len(drawn):
        return Curve(kind, *points, [], [], [], f"no band: {undefined} of {len(drawn)} resamples lack a class")
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Curve(kind, *points, grid.tolist(), low.tolist(), high.tolist())


def _points(
    w: Floats, positive: Bools, order: npt.NDArray[np.int64], last: npt.NDArray[np.int64], kind: Kind
) -> tuple[Floats, Floats]:
    """x and y `[R, P]` of the curve of each set of weights; NaN where a class is missing."""
    drawn = w[:, order]
    true = np.cumsum(drawn * positive[order], axis=1)[:, last]
    false = np.cumsum(drawn * ~positive[order], axis=1)[:, last]
    totals = true[:, -1:], false[:, -1:]
    sound = (totals[0] > 0) & (totals[1] > 0)
    tpr, fpr = (
        np.divide(n, t, out=np.full(n.shape, np.nan), where=sound) for n, t in zip((true, false), totals, strict=True)
    )
    if kind == "roc":
        first = np.where(sound, 0.0, np.nan)
        return np.concatenate([first, fpr], axis=1), np.concatenate([first, tpr], axis=1)
    called = true + false
    return tpr, np.divide(true, called, out=np.zeros_like(true), where=called > 0)


def _on_grid(x: Floats, y: Floats, grid: Floats, kind: Kind) -> Floats:
    """y `[R, G]` at x = `grid`; rows of x rise, and are NaN as a whole where they are not defined."""
    out = np.full((len(x), grid.size), np.nan)
    for r in np.flatnonzero(~np.isnan(x[:, 0])):
        if kind == "roc":
            out[r] = y[r, np.searchsorted(x[r], grid + ROUNDING, side="right") - 1]
        else:
            reached = np.searchsorted(x[r], grid - ROUNDING, side="left")
            out[r] = y[r, np.maximum(reached, np.argmax(x[r] > 0) * (grid == 0))]
    return out
