"""Splits of which there are many: nested cross-validation, and Monte-Carlo cross-validation, by whole groups.

The order of the table's rows does not change them. Not here: a holdout and plain folds (pathray.data.splits), files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng
from pathray.data.splits import GroupedTable, Split, Strings, folds, holdout, stratified_folds
from pathray.errors import UserError

NESTED, MONTE_CARLO = "nested", "monte-carlo"  # Split.meta["kind"]
ATTEMPTS = 64  # at a repeat that differs from all before it
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SomeRows:
    """Some `rows` `[n]` of a table, as a table."""

    table: GroupedTable
    rows: Ints

    @property
    def file(self) -> str:
        return self.table.file

    @property
    def names(self) -> Strings:
        return self.table.names[self.rows]

    @property
    def groups(self) -> Strings:
        return self.table.groups[self.rows]

    @property
    def hash(self) -> str:
        return self.table.hash

    def row_of(self, index: int) -> int:
        return self.table.row_of(int(self.rows[index]))


def nested_folds(table: GroupedTable, labels: Strings, seed: int, k: int, inner: int) -> list[list[Split]]:
    """`k` outer folds of `inner` splits each, with about equal shares of the `labels` `[N]` in each part.

    The splits of an outer fold share its test rows, and every row is tested by exactly one outer fold. The groups that
    the outer fold does not test are divided into `inner` folds, each of which validates once while the others train.
    UserError for more folds than groups, and for a fold that would stay empty.
    """
    out = []
    for i, outer in enumerate(_plain_folds(table, labels, seed, k)):
        left = outer.rows("train")
        inside = _plain_folds(SomeRows(table, left), labels[left], _draw_seed(seed, "nested", i), inner)
        splits = []
        for j, one in enumerate(inside):
            of = outer.of.copy()
            of[left[one.rows("test")]] = "val"
            meta = {"kind": NESTED, "seed": seed, "k": k, "inner_folds": inner, "outer": i, "inner": j}
            splits.append(Split(of, {**meta, "table": table.hash}))
        out.append(splits)
    return out


def monte_carlo(
    table: GroupedTable,
    labels: Strings,
    seed: int,
    repeats: int,
    *,
    train: float = 0.7,
    val: float = 0.15,
    test: float = 0.15,
) -> list[Split]:
    """`repeats` random splits with about equal shares of the `labels` `[N]` in each part. No part is empty, no two
    repeats are equal, and a repeat does not depend on how many there are.

    UserError for fractions that do not add up to 1, fewer groups than parts, and more repeats than there are splits.
    """
    fractions = {"train": train, "val": val, "test": test}
    out, seen = list[Split](), set[bytes]()
    order = np.argsort(table.names)
    for i in range(repeats):
        for attempt in range(ATTEMPTS):
            of = _stratified_holdout(table, labels, _draw_seed(seed, MONTE_CARLO, i, attempt), fractions)
            if of[order].tobytes() not in seen:
                break
        else:
            found, expected = f"{repeats} repeats", f"at most {i}, which is how many differ"
            raise UserError(
                "fewer splits differ than repeats are asked for", file=table.file, found=found, expected=expected
            )
        seen.add(of[order].tobytes())
        meta = {"kind": MONTE_CARLO, "seed": seed, "repeat": i, "repeats": repeats, "fractions": fractions}
        out.append(Split(of, {**meta, "table": table.hash}))
    return out


def _plain_folds(table: GroupedTable, labels: Strings, seed: int, k: int) -> list[Split]:
    """Folds without validation rows, stratified where there are labels to stratify by. UserError where all labels are
    too rare, and for an empty fold."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) > 1 and counts.max() < k:
        found, expected = f"{k} folds, at most {counts.max()} rows of a label", f"at most {counts.max()} folds"
        raise UserError(
            "every label has fewer rows than there are folds", file=table.file, found=found, expected=expected
        )
    if len(counts) > 1:
        made = stratified_folds(table, labels, seed, k, validation=False)
    else:
        made = folds(table, seed, k, validation=False)
    if empty := [i for i, split in enumerate(made) if not split.rows("test").size]:
        found, expected = f"{k} folds, of which fold {empty[0]} is empty", "fewer folds"
        raise UserError(
            "a fold would be empty",
            file=table.file,
            found=found,
            expected=expected,
        )
    return made


def _stratified_holdout(table: GroupedTable, labels: Strings, seed: int, fractions: Mapping[str, float]) -> Strings:
    """The part of each row `[N]`: a holdout of each label's groups. Labels of fewer groups than there are parts are
    split together, so that no part stays empty."""
    of = np.full(len(table.names), "", "<U5")
    label_of = _label_of_groups(table, labels)
    own = np.array([label_of[group] for group in table.groups.tolist()])
    parts = sum(share > 0 for share in fractions.values())
    few = [one for one in np.unique(own) if len(np.unique(table.groups[own == one])) < parts]
    strata = [np.flatnonzero(own == one) for one in np.unique(own) if one not in few]
    rare = np.flatnonzero(np.isin(own, few))
    if rare.size and (not strata or len(np.unique(table.groups[rare])) >= parts):
        strata.append(rare)
    elif rare.size:
        _place_rare(table, rare, seed, of)
    for i, rows in enumerate(strata):
        of[rows] = holdout(SomeRows(table, rows), _draw_seed(seed, "stratum", i), **dict[str, Any](fractions)).of
    return of


def _place_rare(table: GroupedTable, rows: Ints, seed: int, of: Strings) -> None:
    """Place the one or two groups of `rows`, in random order: one that trains, then one that tests."""
    groups = rng(seed, "rare", 0).permutation(np.unique(table.groups[rows]))
    for group, part in zip(groups.tolist(), ("train", "test"), strict=False):
        of[rows[table.groups[rows] == group]] = part


def _label_of_groups(table: GroupedTable, labels: Strings) -> dict[str, str]:
    """The most frequent label of each group; of equally frequent ones the first by name."""
    counts: dict[str, dict[str, int]] = {}
    for group, label in zip(table.groups.tolist(), labels.tolist(), strict=True):
        of_group = counts.setdefault(group, {})
        of_group[label] = of_group.get(label, 0) + 1
    return {group: min(of, key=lambda label: (-of[label], label)) for group, of in counts.items()}


def _draw_seed(seed: int, purpose: str, position: int, attempt: int = 0) -> int:
    return int(rng(seed, purpose, position, attempt).integers(2**31))
