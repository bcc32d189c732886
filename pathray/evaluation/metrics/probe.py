"""What can be read off frozen features: a linear probe and k nearest neighbours, on numpy features `[N, D]`.

Both are told which rows are for training and which for testing; rows of one group (slide, patient, section) must not
be in both parts, and the probe keeps its own validation part apart by group as well. Not here: how features are
made, and intervals (pathray.stats.bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.evaluation.datasets import Unfit

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

CS = tuple(float(c) for c in 10.0 ** np.linspace(-4, 4, 9))
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class ProbeResult:
    """`predictions` are labels of the test rows; `chosen` is the C of a linear probe, the k of a neighbour probe."""

    accuracy: float
    balanced_accuracy: float
    predictions: Labels
    chosen: float


def linear_probe(
    train_x: Floats,
    train_y: Labels,
    test_x: Floats,
    test_y: Labels,
    *,
    train_groups: Labels | None = None,
    test_groups: Labels | None = None,
    cs: Sequence[float] = CS,
    validation: float = 0.2,
    seed: int = 0,
    max_iter: int = 500,
) -> ProbeResult:
    """Multinomial logistic regression on features standardised by the training rows.

    The strength C is the smallest of those best in balanced accuracy on a validation part (`validation` of the training
    groups, stratified, seeded), then the probe is fitted again on all training rows. UserError for features that are
    not finite or a group on both sides; Unfit for fewer than two classes, also in what the validation part leaves.
    """
    _check(train_x, train_y, test_x, test_y, train_groups, test_groups)
    chosen = float(cs[0])
    if len(cs) > 1:
        fit, held = grouped_split(train_y, train_groups, validation, seed)
        if np.unique(train_y[fit]).size < 2:
            expected = "a class with two or more slides (groups), next to another class"
            message = "too few slides to keep a validation part and train on two classes"
            raise Unfit(message, key="train", found=_sizes(train_y, train_groups), expected=expected)
        scores = [
            balanced_accuracy(train_y[held], _logistic(train_x[fit], train_y[fit], train_x[held], c, max_iter))
            for c in sorted(cs)
        ]
        chosen = float(sorted(cs)[int(np.argmax(scores))])
    return _result(test_y, _logistic(train_x, train_y, test_x, chosen, max_iter), chosen)


def knn_probe(
    train_x: Floats,
    train_y: Labels,
    test_x: Floats,
    test_y: Labels,
    *,
    k: int = 20,
    train_groups: Labels | None = None,
    test_groups: Labels | None = None,
) -> ProbeResult:
    """Majority of the k training rows of largest cosine similarity; a tie goes to the class with the larger sum of
    similarities. In float32, in blocks of bounded memory. Errors as `linear_probe`."""
    _check(train_x, train_y, test_x, test_y, train_groups, test_groups)
    classes, codes = np.unique(train_y, return_inverse=True)
    votes = np.zeros((len(test_x), classes.size))
    for start, index, similarity in nearest(train_x, test_x, min(k, len(train_x))):
        rows = np.arange(start, start + len(index))[:, None]
        np.add.at(votes, (rows, codes[index]), 1.0 + similarity * (1e-3 / k))
    return _result(test_y, classes[votes.argmax(axis=1)], float(min(k, len(train_x))))


def nearest(train_x: Floats, test_x: Floats, k: int) -> Any:
    """Blocks of test rows: (first row, indices `[b, k]` of the nearest training rows by cosine, nearest first, their
    similarities `[b, k]` float64). Equal similarities go by index, so the answer does not depend on the blocks."""
    train, test = _unit(train_x), _unit(test_x)
    block = max(1, BLOCK_BYTES // (8 * len(train)))
    for start in range(0, len(test), block):
        similarity = test[start : start + block] @ train.T
        index = _top(similarity, k)
        yield start, index, np.take_along_axis(similarity, index, axis=1).astype(np.float64)


def grouped_split(labels: Labels, groups: Labels | None, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """(training rows, held-out rows), both rising: about `fraction` of the groups held out, no group on both sides.

    Stratified by each group's most frequent label: of every class at least one group stays and, where it has two, one
    is held out (where no class has two, some group is all the same). Without `groups` every row is its own.
    Unfit when fewer than two groups are given.
    """
    members: Labels = np.arange(len(labels)) if groups is None else np.asarray(groups)
    names, group = np.unique(members, return_inverse=True)
    if names.size < 2:
        raise Unfit("a split needs at least two groups", key="groups", found=names.size)
    classes, codes = np.unique(labels, return_inverse=True)
    table = np.zeros((names.size, classes.size), np.int64)
    np.add.at(table, (group, codes), 1)
    stratum = table.argmax(axis=1)
    generator = np.random.Generator(np.random.Philox(seed))
    held = np.zeros(names.size, bool)
    for s in range(classes.size):
        mine = generator.permutation(np.flatnonzero(stratum == s))
        take = min(max(1, round(fraction * mine.size)), mine.size - 1)
        held[mine[: max(take, 0)]] = True
    if not held.any():
        held[generator.integers(names.size)] = True
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])


def balanced_accuracy(truth: Labels, predicted: Labels) -> float:
    """Mean recall over the classes that occur in `truth`."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def _logistic(x: Floats, y: Labels, test: Floats, c: float, max_iter: int) -> Labels:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    std[std < 1e-12] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an upper bound on the work, the same for every encoder
        model = LogisticRegression(C=c, max_iter=max_iter).fit((x - mean) / std, y)
    predicted: Labels = model.predict((test - mean) / std)
    return predicted


def _top(similarity: npt.NDArray[np.float32], k: int) -> Ints:
    """Columns of the k largest of each row, largest first, equal ones by column."""
    if k >= similarity.shape[1]:
        everything: Ints = np.argsort(-similarity, axis=1, kind="stable")
        return everything
    index: Ints = np.sort(np.argpartition(-similarity, k - 1, axis=1)[:, :k], axis=1)
    found = np.take_along_axis(similarity, index, axis=1)
    index = np.take_along_axis(index, np.argsort(-found, axis=1, kind="stable"), axis=1)
    tied = np.flatnonzero((similarity >= found.min(axis=1, keepdims=True)).sum(axis=1) > k)
    index[tied] = np.argsort(-similarity[tied], axis=1, kind="stable")[:, :k]
    return index


def _unit(x: Floats) -> npt.NDArray[np.float32]:
    norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (x / np.maximum(norm, 1e-12)).astype(np.float32)
    return unit


def _check(
    train_x: Floats,
    train_y: Labels,
    test_x: Floats,
    test_y: Labels,
    train_groups: Labels | None,
    test_groups: Labels | None,
) -> None:
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or len(x) != len(y) or len(x) == 0:
            raise UserError("features and labels do not match", key=name, found=f"{x.shape} and {np.shape(y)}")
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise UserError("features must be finite", key=name, row=bad, found="NaN or Inf")
    if np.unique(train_y).size < 2:
        raise Unfit("a probe needs at least two classes", key="train", found=np.unique(train_y).tolist())
    if train_groups is not None and test_groups is not None:
        both = np.intersect1d(train_groups, test_groups)
        if both.size:
            raise UserError("groups stand in training and in test", key="groups", found=both[:5].tolist())


def _sizes(labels: Labels, groups: Labels | None) -> str:
    members: Labels = np.arange(len(labels)) if groups is None else np.asarray(groups)
    return ", ".join(f"{kind}: {np.unique(members[labels == kind]).size}" for kind in np.unique(labels))


def _result(truth: Labels, predicted: Labels, chosen: float) -> ProbeResult:
    accuracy = float(np.mean(predicted == truth))
    return ProbeResult(accuracy, balanced_accuracy(truth, predicted), predicted, chosen)
