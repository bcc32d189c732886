"""A Ray Data source of one rank's plan rows, and how it is executed: in order, quietly.

The one file that touches Ray Data's developer API (`Datasource`, `ReadTask`), behind
tests/ray_jobs/train/test_streams.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pathray.data.share import Lookup, Share, share_positions, share_rows

LARGE = 1 << 20  # bytes of an order that is not sent along with every read task


class RankRows(Datasource):
    """The plan rows of one rank, or without a `lookup` its positions: one ordered read task, or one for every
    `steps_per_task` steps."""

    def __init__(
        self, lookup: Lookup | None, share: Share, chunk: int = 2048, steps_per_task: int | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lookup = ray.put(lookup) if lookup is not None and lookup.order.nbytes > LARGE else lookup
        self._share, self._chunk, self._steps_per_task = share, chunk, steps_per_task

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        share, width = self._share, self._share.stop - self._share.start
        if self._steps_per_task is not None:
            width = self._steps_per_task * share.global_batch
        cuts = range(share.start, share.stop, width)
        return [self._task(replace(share, start=first, stop=min(first + width, share.stop))) for first in cuts]

    def _task(self, share: Share) -> ReadTask:
        lookup, chunk = self._lookup, self._chunk

        def read() -> Iterator[pa.Table]:
            own: Lookup | None = ray.get(lookup) if isinstance(lookup, ray.ObjectRef) else lookup
            if own is None:
                yield from (pa.table({"position": positions}) for positions in share_positions(share, chunk))
            else:
                yield from (pa.table(rows) for rows in share_rows(own, share, chunk))

        return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))


def read(source: RankRows, *, blocks: int, cpus: float) -> ray.data.Dataset:
    """The dataset of a source: blocks in order, no progress bars, no limit to how long a consumer may pause."""
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source, override_num_blocks=blocks, ray_remote_args={"num_cpus": cpus}
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = 1 << 20  # latency and memory only: the order does not depend on it
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = -1  # a slow step, an evaluation or a debugger may pause the consumer
    return dataset


def fetch_rows(lookup: Lookup, share: Share, chunk: int) -> dict[str, Any]:
    """All rows of a share, read in one ordered task."""
    dataset = read(RankRows(lookup, share, chunk), blocks=1, cpus=0.01)
    table = pa.concat_tables(ray.get(dataset.to_arrow_refs()))
    return {name: table.column(name).to_numpy() for name in table.column_names}
