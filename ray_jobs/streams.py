"""One rank's Ray Data stream, opened inside the train function: rows travel through the cluster, in exact order.

`decode_on="worker"` streams plan rows and decodes them in the worker's own threads (core.stream.decoded); `"cluster"`
decodes in Ray Data tasks, so that CPU nodes work for accelerators (without the read timeout: a hanging task is Ray's to
retry). Both give the same units at the same positions. This is the one file that touches Ray Data's developer API
(`Datasource`, `ReadTask`), behind tests/ray_jobs/test_streams.py.

Not `streaming_split`: it drops the last rows of a pass and its state cannot be saved; and no decoding in `collate_fn`,
whose reorder buffer is unbounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from core.stream import (
    Batch,
    DecodeSettings,
    Fault,
    Lookup,
    UnitReader,
    asserted,
    check_geometry,
    decode,
    decoded,
    rank_positions,
)

FAULTS = "faults_json"
MICROS_PER_TASK, TASKS_PER_WINDOW = 4, 1000
WINDOW_ROWS = 1 << 17  # of one rank: some megabytes, and minutes of training
_LIGHT = {"ray_remote_args": {"num_cpus": 0.01}}


@dataclass(frozen=True)
class Share:
    """What part of the sequence a rank reads: positions `start` … `stop` of global batches of `global_batch` units."""

    start: int
    stop: int
    global_batch: int
    micro: int
    rank: int
    world: int


class RankRows(Datasource):
    """The plan rows of one rank: one ordered read task, or one for every `steps_per_task` steps."""

    def __init__(self, lookup: Lookup, share: Share, chunk: int = 2048, steps_per_task: int | None = None) -> None:
        super().__init__()
        self._lookup, self._share, self._chunk, self._steps_per_task = lookup, share, chunk, steps_per_task

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
            steps = max(1, chunk * share.world // share.global_batch)
            own = (share.start, share.stop, share.global_batch, share.rank, share.world)
            for positions in rank_positions(*own, steps):
                yield pa.table(lookup(positions))

        return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))


def rows(lookup: Lookup, share: Share, *, chunk: int = 2048) -> Iterator[dict[str, Any]]:
    """This rank's plan rows in micro-batches, in order, each batch's positions asserted."""
    micros = _cut(_windows(lookup, share, chunk), share.micro)
    return asserted(micros, share.start, share.global_batch, share.rank, share.world, share.micro)


def _windows(lookup: Lookup, share: Share, chunk: int) -> Iterator[dict[str, Any]]:
    """The rows in windows, each a short Ray Data execution taken whole, the next one while this one is used up.

    Not one execution for the whole run: its scheduling loop, which runs in this process as long as it lasts, costs the
    decoding threads more than half of their speed (docs/decisions.md). The first window is small: training can begin.
    """
    parts = _parts(share, chunk)
    with _ahead() as executor:
        coming = executor.submit(_window, lookup, next(parts), chunk)
        while coming is not None:
            window = coming.result()
            part = next(parts, None)
            coming = None if part is None else executor.submit(_window, lookup, part, chunk)
            yield window


def _parts(share: Share, chunk: int) -> Iterator[Share]:
    """`share` cut at step boundaries: `chunk` of the rank's rows first, then WINDOW_ROWS at a time."""
    first, own = share.start, share.global_batch // share.world
    size = chunk
    while first < share.stop:
        stop = min(share.stop, first + max(1, size // own) * share.global_batch)
        yield replace(share, start=first, stop=stop)
        first, size = stop, WINDOW_ROWS


@contextmanager
def _ahead() -> Iterator[ThreadPoolExecutor]:
    """One thread; a stream that is closed does not wait for what the thread is at."""
    executor = ThreadPoolExecutor(1, "pathray-rows")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _window(lookup: Lookup, share: Share, chunk: int) -> dict[str, Any]:
    dataset = _ordered(ray.data.read_datasource(RankRows(lookup, share, chunk), override_num_blocks=1, **_LIGHT))
    table = pa.concat_tables(ray.get(dataset.to_arrow_refs()))
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _cut(batches: Iterable[dict[str, Any]], micro: int) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for first in range(0, len(batch["position"]), micro):
            yield {name: values[first : first + micro] for name, values in batch.items()}


def stream(
    lookup: Lookup,
    reader: UnitReader,
    share: Share,
    *,
    decode_on: str = "worker",
    settings: DecodeSettings | None = None,
    tasks: int = 2,
    chunk: int = 2048,
) -> Iterator[Batch]:
    """Decoded micro-batches of this rank from `share.start`, in order. `tasks` bounds the decoding tasks of `cluster`.

    UserError when W·micro does not divide G; what the reader raises beside UnreadableUnit comes through.
    """
    check_geometry(share.global_batch, share.world, share.micro)
    if share.start >= share.stop:
        return iter(())
    if decode_on == "worker":
        return decoded(rows(lookup, share, chunk=chunk), reader, lookup, settings)
    assert decode_on == "cluster", decode_on
    return asserted(
        _decoded_in_tasks(lookup, reader, share, tasks, chunk),
        share.start,
        share.global_batch,
        share.rank,
        share.world,
        share.micro,
    )


def _ordered(dataset: ray.data.Dataset) -> ray.data.Dataset:
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = 1 << 20  # latency and memory only: the order does not depend on it
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = -1  # a slow step, an evaluation or a debugger may pause the consumer
    return dataset


class _DecodeTask:
    """Decodes one micro-batch of rows in a Ray Data task; each unit's faults travel as JSON beside its arrays."""

    def __init__(self, lookup: Lookup, reader: UnitReader) -> None:
        self.lookup, self.reader = lookup, reader

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        batch = decode(self.reader, rows, self.lookup)
        faults = batch.pop("faults")
        del batch["corrupt"]
        own = [[asdict(f) for f in faults if f.position == position] for position in batch["position"]]
        batch[FAULTS] = np.array([json.dumps(f) for f in own], dtype=object)
        return batch


def _decoded_in_tasks(lookup: Lookup, reader: UnitReader, share: Share, tasks: int, chunk: int) -> Iterator[Batch]:
    """Reads and decodes in tasks of a few micro-batches; the tasks of a window are planned at once, then the next's."""
    steps = max(1, MICROS_PER_TASK * share.micro * share.world // share.global_batch)
    window = steps * TASKS_PER_WINDOW * share.global_batch
    decode_task = _DecodeTask(lookup, reader).__call__
    for first in range(share.start, share.stop, window):
        part = replace(share, start=first, stop=min(first + window, share.stop))
        count = -(-(part.stop - part.start) // (steps * share.global_batch))
        source = RankRows(lookup, part, chunk, steps)
        dataset = _ordered(ray.data.read_datasource(source, override_num_blocks=count, ray_remote_args={"num_cpus": 1}))
        dataset = dataset.map_batches(
            decode_task, batch_size=share.micro, batch_format="numpy", num_cpus=1, concurrency=min(tasks, count)
        )
        for batch in dataset.iterator().iter_batches(batch_size=share.micro, prefetch_batches=2, batch_format="numpy"):
            batch["faults"] = [Fault(**f) for text in batch.pop(FAULTS) for f in json.loads(text)]
            batch["corrupt"] = len({f.position for f in batch["faults"] if not f.benign})
            yield batch
