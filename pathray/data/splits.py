"""Splits a table into train, val and test rows by whole groups (such as patients), from a seed, for any science.

`holdout` and `folds` assign whole groups by their numbers of rows. scikit-learn's GroupShuffleSplit (shares of groups)
and shuffled GroupKFold (any sizes) do not; stratified folds use scikit-learn. The order of the table's rows does not
change the split. Not here: split files (pathray.data.split_files).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pathray.data.order import rng
from pathray.errors import UserError

SPLITS = ("train", "val", "test")
Strings = npt.NDArray[np.str_]


class GroupedTable(Protocol):
    """Named rows that belong to groups, read from a file."""

    @property
    def file(self) -> str: ...
    @property
    def names(self) -> Strings: ...
    @property
    def groups(self) -> Strings: ...
    @property
    def hash(self) -> str:
        """Digest of all rows, independent of their order."""
        ...

    def row_of(self, index: int) -> int:
        """The row number shown to users: the line in a CSV."""
        ...


@dataclass(frozen=True)
class Split:
    """`of` `[N]`: train, val or test for each row of the table, in its order. `meta` records how it was made."""

    of: Strings
    meta: Mapping[str, Any]

    def rows(self, name: str) -> npt.NDArray[np.int64]:
        """The rows of one part."""
        return np.flatnonzero(self.of == name)


def holdout(table: GroupedTable, seed: int, *, train: float = 0.7, val: float = 0.15, test: float = 0.15) -> Split:
    """Assign whole groups, in random order, to the part with the most missing rows; no part stays empty.

    UserError if the fractions do not add up to 1, or if there are fewer groups than parts.
    """
    fractions = {"train": train, "val": val, "test": test}
    if min(fractions.values()) < 0 or train <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError("fractions of the rows add up to 1, and some train", key="fractions", found=fractions)
    wanted = {name: share * len(table.names) for name, share in fractions.items() if share > 0}
    groups, sizes = _shuffle_groups(table, seed)
    if len(groups) < len(wanted):
        found, expected = f"{len(groups)} groups", f"a group for each of {', '.join(wanted)}"
        raise UserError("too few groups to split", file=table.file, key="group_id", found=found, expected=expected)
    placed, given = dict.fromkeys(wanted, 0), {}
    for i, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        empty = [name for name in wanted if placed[name] == 0]
        open_to = empty if len(groups) - i <= len(empty) else list(wanted)
        part = max(open_to, key=lambda name: wanted[name] - placed[name])
        given[group] = part
        placed[part] += size
    return _split(table, given, {"kind": "holdout", "seed": seed, "fractions": fractions})


def folds(table: GroupedTable, seed: int, k: int | None = None, *, validation: bool = True) -> list[Split]:
    """Group k-fold: fold i tests, the next one validates, the others train. Without `k`: leave one group out.

    Groups are assigned, largest first, to the fold with the fewest rows. UserError for more folds than groups, and if
    nothing is left to train on.
    """
    groups, sizes = _shuffle_groups(table, seed)
    count = len(groups) if k is None else k
    _check_count(table, count, len(groups), validation)
    rows, fold = [0] * count, {}
    for i in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        least_rows = min(range(count), key=lambda f: rows[f])
        fold[groups[i]] = least_rows
        rows[least_rows] += sizes[i]
    kind = {"kind": "leave-one-group-out" if k is None else "group-k-fold", "seed": seed}
    return _splits_of(table, fold, {**kind, "k": count}, validation)


def stratified_folds(
    table: GroupedTable, labels: Strings, seed: int, k: int, *, validation: bool = True
) -> list[Split]:
    """Group k-fold with about equal shares of the `labels` `[N]` in each part (scikit-learn's StratifiedGroupKFold).
    UserError as in `folds`."""
    from sklearn.model_selection import StratifiedGroupKFold

    _check_count(table, k, len(np.unique(table.groups)), validation)
    order = np.argsort(table.names)
    groups = table.groups[order]
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    fold: dict[str, int] = {}
    for i, (_, tested) in enumerate(splitter.split(order, labels[order], groups)):
        fold |= dict.fromkeys(groups[tested].tolist(), i)
    return _splits_of(table, fold, {"kind": "stratified-group-k-fold", "seed": seed, "k": k}, validation)


def _check_count(table: GroupedTable, count: int, groups: int, validation: bool) -> None:
    least = 3 if validation else 2
    if not least <= count <= groups:
        found, expected = f"{count} folds of {groups} groups", f"{least} to {groups}"
        raise UserError("invalid number of folds", file=table.file, key="k", found=found, expected=expected)


def _splits_of(table: GroupedTable, fold: Mapping[str, int], meta: Mapping[str, Any], validation: bool) -> list[Split]:
    """A split per fold from the fold of each group: fold i tests, the next one validates, the others train."""
    out = []
    for i in range(meta["k"]):
        parts = {i: "test"} | ({(i + 1) % meta["k"]: "val"} if validation else {})
        out.append(_split(table, {g: parts.get(f, "train") for g, f in fold.items()}, {**meta, "fold": i}))
    return out


def _shuffle_groups(table: GroupedTable, seed: int) -> tuple[list[str], list[int]]:
    """The groups in random order, with their numbers of rows."""
    groups, sizes = np.unique(table.groups, return_counts=True)
    order = rng(seed, "splits", 0).permutation(len(groups))
    return groups[order].tolist(), sizes[order].tolist()


def _split(table: GroupedTable, given: Mapping[str, str], meta: Mapping[str, Any]) -> Split:
    of = np.array([given[group] for group in table.groups.tolist()], dtype="<U5")
    return Split(of, {**meta, "table": table.hash})
