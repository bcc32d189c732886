"""One class against the rest by score: AUROC and average precision of many resamples, sorted once. No torch.

Not here: means over classes (pathray.stats.classification), curves (pathray.stats.curves), tests
(pathray.stats.comparing.delong).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathray.stats.weights import ratio

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranking:
    """P members of a class and Q others by falling score; places count rows from the highest score on.

    A set of weights needs no sorting: what a member meets above it is a sum up to a place that is the same for all.
    """

    own: Ints  # [P] rows of the members
    other: Ints  # [Q] rows of the others
    others_above: Ints  # [P] how many others score higher than each member
    others_down_to: Ints  # [P] … at least as high
    own_down_to: Ints  # [P] how many members score at least as high

    @classmethod
    def of(cls, is_own: npt.ArrayLike, score: npt.ArrayLike) -> Ranking:
        """The ranking of members `[N]` (bool) by scores `[N]`. ValueError for unequal shapes, NaN or inf."""
        member, values = np.asarray(is_own, np.bool_), np.asarray(score, np.float64)
        if values.ndim != 1 or member.shape != values.shape:
            raise ValueError(f"members and scores must both be [N], found {member.shape} and {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"scores are not finite: {values[~np.isfinite(values)][0]}")
        own, other = (rows[np.argsort(-values[rows], kind="stable")] for rows in map(np.flatnonzero, (member, ~member)))
        falling, others = -values[own], -values[other]
        above, down_to = (np.searchsorted(others, falling, side=side) for side in ("left", "right"))
        return cls(own, other, above, down_to, np.searchsorted(falling, falling, side="right"))

    def auroc(self, w: Floats) -> Floats:
        """`[R]`: the chance that a member's score exceeds another's, ties count half; NaN without members or others.

        AUROC = Σ_i Σ_j w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / (Σ_i w_i · Σ_j w_j), i members, j others.
        """
        return self._auroc(w[:, self.own], _summed(w, self.other))

    def average_precision(self, w: Floats) -> Floats:
        """`[R]`: Σ_n (R_n − R_{n−1}) P_n over the distinct scores from the highest down; NaN without members.

        Step-wise as in scikit-learn: no interpolation, which would be too optimistic. Equal scores are one step.
        """
        return self._average_precision(w[:, self.own], _summed(w, self.other))

    def both(self, w: Floats) -> tuple[Floats, Floats]:
        """AUROC and average precision from the same sums."""
        own, others = w[:, self.own], _summed(w, self.other)
        return self._auroc(own, others), self._average_precision(own, others)

    def _auroc(self, own: Floats, others: Floats) -> Floats:
        lost = others.take(self.others_above, axis=1)
        if not np.array_equal(self.others_above, self.others_down_to):
            lost += others.take(self.others_down_to, axis=1)
            lost /= 2
        members, total = own.sum(axis=1), others[:, -1]
        return ratio(members * total - np.einsum("rp,rp->r", own, lost), members * total)

    def _average_precision(self, own: Floats, others: Floats) -> Floats:
        found = np.cumsum(own, axis=1).take(self.own_down_to - 1, axis=1)
        called = others.take(self.others_down_to, axis=1)
        called += found
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return ratio(np.einsum("rp,rp->r", own, precision), own.sum(axis=1))


def _summed(w: Floats, rows: Ints) -> Floats:
    """`[R, Q + 1]`: the weight of the first 0 … Q rows."""
    out = np.zeros((len(w), rows.size + 1))
    np.cumsum(w.take(rows, axis=1), axis=1, out=out[:, 1:])
    return out
