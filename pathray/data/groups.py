"""The order of pre-formed batches: bags of similar size, bags within a token budget, packed sequences.

A *group* is a set of plan rows that are read together. `GroupedOrder` gives the group at each position, as a pure
function of (seed, position), while `Order` (pathray.data.order) gives one row. Groups are stored like a sparse matrix
(CSR): group g holds `rows[starts[g]:starts[g + 1]]`. Arrays may be memory-mapped; 10^7 rows of int32 are 40 MB.

Not here: how groups are formed (the sciences), how they are read (pathray.data.share, pathray.data.stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import Ints, key_of, permute, rng
from pathray.errors import UserError

Table = npt.NDArray[Any]  # integers of any width
FEWEST = 16  # a replacement is drawn from at least this many of the smallest rows


@dataclass(frozen=True)
class GroupedOrder:
    """Position → group of plan rows, for an endless sequence of passes, each in a different order.

    `passes` `[passes + 1]` says which groups belong to which pass: pass t visits the groups
    `passes[t]` … `passes[t + 1] − 1` once each, in an order permuted by (seed, t). After the last pass the first one
    is repeated in a new order. So a science may form new groups for each epoch instead of only shuffling them.

    Build it with `grouped_order`.
    """

    seed: int
    starts: Table
    rows: Table
    passes: Ints
    sizes: Table | None = None
    by_size: Table | None = None

    def groups(self, positions: npt.ArrayLike) -> Ints:
        """Groups `[N]` at positions `[N]`."""
        index = np.asarray(positions, np.int64)
        assert index.size == 0 or index.min() >= 0, "a position is never negative"
        total, count = int(self.passes[-1]), self.passes.size - 1
        cycle, place = index // total, index % total
        which = np.searchsorted(self.passes, place, side="right") - 1
        first, n = self.passes[which], np.diff(self.passes)[which]
        return first + permute(place - first, n, key_of(self.seed, 1, 0, cycle * count + which))

    def members(self, positions: npt.ArrayLike) -> tuple[Ints, Ints]:
        """Plan rows `[R]` of the groups at positions `[N]`, one group after the other, and their counts `[N]`."""
        group = self.groups(positions)
        first = self.starts[group].astype(np.int64)
        counts = self.starts[group + 1] - first
        return self.rows[np.repeat(first, counts) + slots(counts)].astype(np.int64), counts

    def replacement(self, position: int, attempt: int, slot: int = 0) -> int:
        """The row that replaces an unreadable one, by (seed, position, attempt, slot).

        If rows have sizes, it is no larger than the row it replaces, so that the group stays within its budget. If
        fewer than FEWEST rows are small enough, it is one of the FEWEST smallest rows.
        """
        draw, count = rng(self.seed, "replacement", position, attempt, slot), self.rows.size
        if self.sizes is None or self.by_size is None:
            return int(self.rows[draw.integers(count)])
        own = self.sizes[int(self.starts[self.groups([position])[0]]) + slot]
        fitting = int(np.searchsorted(self.sizes, own, side="right", sorter=self.by_size))
        return int(self.rows[self.by_size[draw.integers(max(fitting, min(FEWEST, count)))]])

    @property
    def units_per_position(self) -> float:
        """The mean number of rows in a group."""
        return self.rows.size / (self.starts.size - 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, which are sent with the order."""
        arrays = (self.starts, self.rows, self.passes, self.sizes, self.by_size)
        return sum(a.nbytes for a in arrays if a is not None)


def grouped_order(
    starts: npt.ArrayLike,
    rows: npt.ArrayLike,
    seed: int,
    *,
    passes: Sequence[int] | Ints | None = None,
    sizes: npt.ArrayLike | None = None,
) -> GroupedOrder:
    """The order of pre-formed batches: group g holds the plan rows `rows[starts[g]:starts[g + 1]]`.

    `starts` `[groups + 1]` and `rows` `[R]` may be memory maps and of any integer type; a row may be in several groups.
    `passes` `[passes + 1]` gives the first group of each pass, and the number of groups at its end; without it all
    groups are one pass. `sizes` `[R]` gives the size of each entry of `rows` (instances of a bag, tokens): then a
    replacement is no larger than the unit it replaces. UserError for no groups, an empty group, or arrays that do not
    fit each other.
    """
    first, members = np.asarray(starts), np.asarray(rows)
    _check_starts("starts", first, members.size, "groups of at least one row that cover all of `rows`")
    count = first.size - 1
    turns = np.asarray([0, count] if passes is None else passes, np.int64)
    _check_starts("passes", turns, count, "passes of at least one group that cover all groups")
    if sizes is None:
        return GroupedOrder(seed, first, members, turns)
    weights = np.asarray(sizes)
    if weights.shape != members.shape:
        raise UserError("each row of a group needs a size", key="sizes", found=weights.shape, expected=members.shape)
    ranks = np.argsort(weights, kind="stable").astype(np.int32 if weights.size < 1 << 31 else np.int64)
    return GroupedOrder(seed, first, members, turns, weights, ranks)


def slots(counts: Ints) -> Ints:
    """The place `[R]` of each row within its group, for groups of these counts `[N]`: 0 … count − 1 for each group."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if ends.size else 0) - np.repeat(ends - counts, counts)


def _check_starts(key: str, starts: Table, size: int, expected: str) -> None:
    if starts.ndim != 1 or starts.size < 2 or size < 1:
        raise UserError("there are no groups: nothing to train on", key=key, found=starts.shape, expected=expected)
    empty = np.flatnonzero(np.diff(starts) <= 0)
    if starts[0] != 0 or starts[-1] != size or empty.size:
        found = f"an empty one, number {empty[0]}" if empty.size else f"{starts[0]} … {starts[-1]} of {size}"
        raise UserError(f"`{key}` does not divide its table into groups", key=key, found=found, expected=expected)
