"""The positions that a rank owns and their plan rows, in micro-batches. Without Ray, so notebooks use it too.

Not here: the order of rows (pathray.data.order), how rows are sent through a cluster
(ray_jobs.train.rank_stream), how they are decoded (pathray.data.stream).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.groups import GroupedOrder, slots
from pathray.data.order import Ints, Order
from pathray.data.plan import Plan
from pathray.errors import UserError

Rows = dict[str, npt.NDArray[Any]]  # columns of equal length


@dataclass(frozen=True)
class Lookup:
    """Position → the plan's columns, plus ``position`` and ``row``, as sent through a rank's stream to where units are
    read.

    If positions hold groups, the rows of all groups are concatenated, and ``slot`` is the place of each row in its
    group: 0 starts the next group.
    """

    plan: Plan
    order: Order | GroupedOrder

    @property
    def grouped(self) -> bool:
        """Whether a position holds a group of rows."""
        return isinstance(self.order, GroupedOrder)

    def __call__(self, positions: npt.ArrayLike) -> Rows:
        index = np.asarray(positions, np.int64)
        if isinstance(self.order, GroupedOrder):
            rows, counts = self.order.members(index)
            place = {"position": np.repeat(index, counts), "slot": slots(counts)}
        else:
            rows, place = self.order.rows(index), {"position": index}
        columns = self.plan.take(rows)
        assert not columns.keys() & {"position", "slot", "row"}, "names of a plan's columns that are taken"
        return {**place, "row": rows, **columns}

    def replacement(self, position: int, attempt: int, slot: int | None = None) -> dict[str, Any]:
        """The replacement at `position` (and `slot`, in a group) for the given attempt (≥ 1)."""
        row = self.order.replacement(position, attempt, slot or 0)
        place = {"position": position} if slot is None else {"position": position, "slot": slot}
        return {**place, "row": row, **{k: v[0] for k, v in self.plan.take([row]).items()}}


@dataclass(frozen=True)
class Share:
    """The part of the sequence that a rank reads: positions `start` … `stop`, in global batches of `global_batch`
    positions and micro-batches of `micro`."""

    start: int
    stop: int
    global_batch: int
    micro: int
    rank: int
    world: int


def check_geometry(global_batch: int, world: int, micro: int) -> None:
    """UserError unless W·micro divides G (all in positions)."""
    if min(global_batch, world, micro) < 1 or global_batch % (world * micro):
        raise UserError(
            "workers x micro_batch must divide the global batch",
            key="micro_batch",
            found=f"global_batch {global_batch}, workers {world}, micro_batch {micro}",
            expected=f"workers x micro_batch one of {_divisors(global_batch)}",
        )


def rank_positions(start: int, stop: int, global_batch: int, rank: int, world: int, steps: int = 256) -> Iterator[Ints]:
    """The positions of one rank between two step boundaries, in order, in arrays of up to `steps` steps.

    Step s holds positions sG … sG+G−1 and rank r owns the r-th G/W of them.
    """
    assert start % global_batch == 0 and stop % global_batch == 0 and global_batch % world == 0
    share = global_batch // world
    for first in range(start // global_batch, stop // global_batch, steps):
        step = np.arange(first, min(first + steps, stop // global_batch), dtype=np.int64)[:, None]
        yield (step * global_batch + rank * share + np.arange(share)).ravel()


def share_rows(lookup: Lookup, share: Share, chunk: int = 2048) -> Iterator[Rows]:
    """The plan rows of a rank's share, looked up about `chunk` at a time, in whole steps."""
    for positions in share_positions(share, round(chunk / lookup.order.units_per_position)):
        yield lookup(positions)


def share_positions(share: Share, chunk: int) -> Iterator[Ints]:
    """The positions of a rank's share, about `chunk` at a time, in whole steps."""
    steps = max(1, chunk * share.world // share.global_batch)
    return rank_positions(share.start, share.stop, share.global_batch, share.rank, share.world, steps)


def rank_rows(
    lookup: Lookup, start: int, stop: int, global_batch: int, rank: int, world: int, micro: int, chunk: int = 2048
) -> Iterator[Rows]:
    """One rank's rows in micro-batches, looked up `chunk` rows at a time: the stream without Ray."""
    check_geometry(global_batch, world, micro)
    for rows in share_rows(lookup, Share(start, stop, global_batch, micro, rank, world), chunk):
        yield from micro_batches(rows, micro)


def micro_batches(rows: Rows, micro: int) -> Iterator[Rows]:
    """Rows split into batches of `micro` positions each; a group is never split."""
    cuts = np.arange(0, len(rows["position"]), micro)
    if "slot" in rows:
        cuts = np.flatnonzero(rows["slot"] == 0)[::micro]
    for first, last in zip(cuts, [*cuts[1:], len(rows["position"])], strict=True):
        yield {name: values[first:last] for name, values in rows.items()}


def check_positions(
    batches: Iterable[dict[str, Any]], start: int, global_batch: int, rank: int, world: int, micro: int
) -> Iterator[dict[str, Any]]:
    """Pass batches (of rows, or decoded) through, asserting that each has exactly the next positions of this rank."""
    share = global_batch // world
    for i, batch in enumerate(batches):
        step, part = divmod(i, share // micro)
        first = start + step * global_batch + rank * share + part * micro
        expected = np.arange(first, first + micro)
        found = batch["position"]
        if "slot" in batch and "corrupt" not in batch:  # rows of groups
            found = found[batch["slot"] == 0]
        assert np.array_equal(found, expected), (rank, i, found, expected)
        yield batch


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, max(n, 1) + 1) if n % d == 0]
