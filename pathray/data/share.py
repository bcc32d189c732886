"""Which positions a rank owns, and the plan rows at them, in micro-batches. No Ray: the notebook's loader too.

Not here: which row is at which position (pathray.data.order), how rows travel through a cluster
(ray_jobs.train.rank_stream), how they are decoded (pathray.data.stream).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import Ints, Order
from pathray.data.plan import Plan
from pathray.errors import UserError


@dataclass(frozen=True)
class Lookup:
    """Position → the plan's columns, plus ``position`` and ``row``. What a rank's stream carries to wherever it is
    read."""

    plan: Plan
    order: Order

    def __call__(self, positions: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        index = np.asarray(positions, np.int64)
        rows = self.order.rows(index)
        return {"position": index, "row": rows, **self.plan.take(rows)}

    def replacement(self, position: int, attempt: int) -> dict[str, Any]:
        """The unit that stands in at `position` for the given attempt (≥ 1)."""
        row = self.order.replacement(position, attempt)
        return {"position": position, "row": row, **{k: v[0] for k, v in self.plan.take([row]).items()}}


@dataclass(frozen=True)
class Share:
    """What part of the sequence a rank reads: positions `start` … `stop` of global batches of `global_batch` units."""

    start: int
    stop: int
    global_batch: int
    micro: int
    rank: int
    world: int


def check_geometry(global_batch: int, world: int, micro: int) -> None:
    """UserError unless W·micro divides G."""
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


def share_rows(lookup: Lookup, share: Share, chunk: int = 2048) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The plan rows of a rank's share, looked up about `chunk` at a time."""
    steps = max(1, chunk * share.world // share.global_batch)
    for positions in rank_positions(share.start, share.stop, share.global_batch, share.rank, share.world, steps):
        yield lookup(positions)


def rank_rows(
    lookup: Lookup, start: int, stop: int, global_batch: int, rank: int, world: int, micro: int, chunk: int = 2048
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """One rank's rows in micro-batches, looked up `chunk` rows at a time: the stream without Ray."""
    check_geometry(global_batch, world, micro)
    for rows in share_rows(lookup, Share(start, stop, global_batch, micro, rank, world), chunk):
        for i in range(0, len(rows["position"]), micro):
            yield {name: values[i : i + micro] for name, values in rows.items()}


def asserted(
    batches: Iterable[dict[str, Any]], start: int, global_batch: int, rank: int, world: int, micro: int
) -> Iterator[dict[str, Any]]:
    """Pass batches through, asserting that each holds exactly the positions that this rank owns next."""
    share = global_batch // world
    for i, batch in enumerate(batches):
        step, part = divmod(i, share // micro)
        first = start + step * global_batch + rank * share + part * micro
        expected = np.arange(first, first + micro)
        assert np.array_equal(batch["position"], expected), (rank, i, batch["position"], expected)
        yield batch


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, max(n, 1) + 1) if n % d == 0]
