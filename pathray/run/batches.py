"""Where a run's decoded batches come from: a function of the assembly, the plan and this rank's share of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pathray.data.plan import Plan
from pathray.data.share import Lookup, Share, rank_rows
from pathray.data.stream import stream_batches
from pathray.train.assembly import Assembly

Batches = Callable[[Assembly, Plan, Share], Iterator[dict[str, Any]]]


def local(parts: Assembly, plan: Plan, share: Share) -> Iterator[dict[str, Any]]:
    """Micro-batches of this rank from `share.start` on, decoded in threads of this process.

    Each has ``position``, ``corrupt`` and ``faults`` next to the reader's arrays. UserError when W·micro does not
    divide G. `decode_on: cluster` is of a cluster: here its units are decoded in threads all the same.
    """
    lookup = Lookup(plan, parts.order)
    rows = rank_rows(
        lookup, share.start, share.stop, share.global_batch, share.rank, share.world, share.micro, parts.chunk
    )
    return stream_batches(rows, parts.reader, lookup, parts.decode)
