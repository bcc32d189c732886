"""The robustness index: do a patch's neighbours share its biology, or the centre that it comes from?

    RI(k) = ΣSO / (ΣSO + ΣOS)        (Kömen et al. 2025, arXiv 2507.17845)

over all queries and their first k neighbours; SO: same class, other centre; OS: other class, same centre. 1 is best.
Neighbours are Euclidean on L2-normalised features, and no patch of the query's own slide is ever one, however many
there are. Distances are sorted out in float32 blocks of bounded memory; where rounding could decide, they are computed
again in float64, and equal ones go by row number: the answer depends neither on the blocks nor on the machine.
Not here: which rows are in-domain (pathray.evaluation.datasets).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit
from pathray.evaluation.metrics.probe import BLOCK_BYTES

Floats = npt.NDArray[np.floating[Any]]
Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

KS = (1, 3, 5, 7, 9, *range(11, 102, 10))  # what `auto` chooses from
BYTES_PER_SCORE = 16  # of a block, all temporaries counted


@dataclass(frozen=True)
class RobustnessIndex:
    """`value` at `k`; `same_class_other_center` (SO) and `other_class_same_center` (OS) are its counts, `accuracy` the
    balanced accuracy of the k-neighbour vote on the class; `values` and `accuracies` are those of every k looked at."""

    value: float
    k: int
    same_class_other_center: int
    other_class_same_center: int
    accuracy: float
    values: dict[int, float]
    accuracies: dict[int, float]


def robustness_index(
    features: Floats,
    labels: Labels,
    centers: Labels,
    slides: Labels,
    *,
    k: int | str,
    parts: Sequence[Ints] | None = None,
) -> RobustnessIndex:
    """Of features `[N, D]` (any scale: they are normalised here) with a class, a centre and a slide per row.

    k: the number of neighbours, or ``auto``: the one of `KS` with the best balanced accuracy of the neighbours' vote on
    the class, the smallest of equals. parts: rows among which neighbours are searched (pairs of centres and classes);
    their counts are pooled, their accuracies averaged. A query with fewer than k patches of other slides has those.
    NaN where no neighbour is of either kind. UserError for features that are not finite or zero, Unfit where no
    neighbour can be of one of the kinds, so that the index is 0 or 1 whatever the features.
    """
    _check(labels, centers, slides)
    unit = normalise(features)
    ks = KS if k == "auto" else (int(k),)
    if min(ks) < 1:
        raise UserError("a neighbourhood has at least one patch", key="neighbours", found=k)
    so, os, accuracies = np.zeros(max(ks), np.int64), np.zeros(max(ks), np.int64), []
    for rows in [np.arange(len(unit))] if parts is None else parts:
        classes, codes = np.unique(labels[rows], return_inverse=True)
        center = np.unique(centers[rows], return_inverse=True)[1]
        correct = np.zeros((len(ks), len(rows)), bool)
        for queries, index in neighbours(unit[rows], slides[rows], max(ks)):
            found, own = index >= 0, np.s_[queries, None]
            same_class, same_center = codes[index] == codes[own], center[index] == center[own]
            so += (found & same_class & ~same_center).sum(axis=0)
            os += (found & ~same_class & same_center).sum(axis=0)
            for i, n in enumerate(ks):
                correct[i, queries] = _vote(codes[index[:, :n]], found[:, :n], classes.size) == codes[queries]
        accuracies.append([np.mean([row[codes == c].mean() for c in range(classes.size)]) for row in correct])
    accuracy = np.mean(accuracies, axis=0)
    so, os = np.cumsum(so), np.cumsum(os)
    at = int(np.argmax(accuracy))
    best = ks[at] - 1
    with np.errstate(invalid="ignore"):
        values = so / (so + os)
    return RobustnessIndex(
        float(values[best]),
        ks[at],
        int(so[best]),
        int(os[best]),
        float(accuracy[at]),
        {n: float(values[n - 1]) for n in ks},
        {n: float(a) for n, a in zip(ks, accuracy, strict=True)},
    )


def _check(labels: Labels, centers: Labels, slides: Labels) -> None:
    for name, values in (("class", labels), ("medical centre", centers)):
        if np.unique(values).size < 2:
            raise Unfit("the robustness index needs two or more", key=name, found=np.unique(values).tolist())
    if not any(np.unique(centers[labels == kind]).size > 1 for kind in np.unique(labels)):
        raise Unfit("no class has two centres: the robustness index would be 0 of any features", key="medical centre")
    mixed = (np.flatnonzero(centers == center) for center in np.unique(centers))
    if not any(np.unique(labels[rows]).size > 1 and np.unique(slides[rows]).size > 1 for rows in mixed):
        message = "no centre has two classes on two slides: the robustness index would be 1 of any features"
        raise Unfit(message, key="class")


def normalise(features: Floats) -> Doubles:
    """Rows `[N, D]` of length one, in float64. UserError naming the row for one that is not finite or of length 0."""
    x = np.asarray(features, np.float64)
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        found = f"NaN or Inf in {int((~finite).sum())} of {len(x)} rows"
        raise UserError("features must be finite", row=row, key="features", found=found)
    length = np.linalg.norm(x, axis=1)
    if not length.all():
        row = int(np.flatnonzero(length == 0)[0])
        raise UserError("a feature of length 0 has no direction", row=row, key="features", found="zeros only")
    unit: Doubles = x / length[:, None]
    return unit


def neighbours(x: Doubles, slides: Labels, k: int) -> Iterator[tuple[Ints, Ints]]:
    """Blocks of (rows `[b]`, their k nearest rows of other slides `[b, k]`, nearest first, −1 where there are no more).

    Together the blocks hold every row once. Equal distances (to float64) go by row number.
    """
    order = np.argsort(np.unique(slides, return_inverse=True)[1], kind="stable")
    x, slides = x[order] - x.mean(axis=0), slides[order]  # centred: the same distances, with less rounding
    first = np.flatnonzero(np.r_[True, slides[1:] != slides[:-1]])
    slide = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(x)]))
    end = np.r_[first[1:], len(x)]
    half = 0.5 * np.einsum("nd,nd->n", x, x)
    queries = np.concatenate([x, -np.ones((len(x), 1))], axis=1).astype(np.float32)
    keys = np.concatenate([x, half[:, None]], axis=1).astype(np.float32)
    block = max(1, min(len(x), BLOCK_BYTES // (BYTES_PER_SCORE * len(x))))
    for start in range(0, len(x), block):
        rows = np.arange(start, min(start + block, len(x)))
        score = queries[rows] @ keys.T  # x·y − |y|²/2: larger is nearer
        for s in range(slide[rows[0]], slide[rows[-1]] + 1):
            score[max(first[s] - start, 0) : end[s] - start, first[s] : end[s]] = -np.inf
        # what float32 can be wrong by: each of the D products and sums rounds once
        slack = 2 * (x.shape[1] + 8) * 2.0**-24 * 3 * half.max()
        yield order[rows], _best_columns(x, order, score, start, k, np.float32(slack))


def _best_columns(x: Doubles, order: Ints, score: Singles, start: int, k: int, slack: np.float32) -> Ints:
    """The k best columns of every row of a block of scores, as `neighbours` gives them. Where scores lie within `slack`
    of each other they are replaced by float64 distances."""
    n = min(k, score.shape[1])
    kth = np.partition(score, score.shape[1] - n, axis=1)[:, score.shape[1] - n]
    row, column = np.nonzero((score >= (kth - slack)[:, None]) & np.isfinite(score))
    key = -score[row, column].astype(np.float64)
    by = np.lexsort((order[column], key, row))
    row, column, key = row[by], column[by], key[by]
    near = (row[1:] == row[:-1]) & (key[1:] - key[:-1] <= slack)
    doubtful = np.flatnonzero(np.r_[near, False] | np.r_[False, near])
    if doubtful.size and slack > 0:
        step = max(1, BLOCK_BYTES // (24 * x.shape[1]))
        for i in range(0, doubtful.size, step):
            some = doubtful[i : i + step]
            mine = x[start + row[some]]
            apart = mine - x[column[some]]
            key[some] = 0.5 * (np.einsum("nd,nd->n", apart, apart) - np.einsum("nd,nd->n", mine, mine))
        by = np.lexsort((order[column], key, row))
        row, column = row[by], column[by]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < k
    index = np.full((len(score), k), -1, np.int64)
    index[row[kept], rank[kept]] = order[column[kept]]
    return index


def _vote(codes: Ints, found: npt.NDArray[np.bool_], classes: int) -> Ints:
    """The most frequent class of each row, the first of equals; −1 for a row without neighbours."""
    votes = np.stack([((codes == c) & found).sum(axis=1) for c in range(classes)], axis=1)
    winner: Ints = np.where(found.any(axis=1), votes.argmax(axis=1), -1)
    return winner
