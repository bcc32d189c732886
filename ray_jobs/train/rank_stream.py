"""One rank's Ray Data stream, opened inside the train function: rows travel through the cluster, in exact order.

`decode_on="worker"` streams plan rows and decodes them in the worker's own threads
(pathray.data.stream.stream_batches); `"cluster"` decodes in Ray Data tasks, so that CPU nodes work for accelerators
(without the read timeout: a hanging task is Ray's to retry). Both give the same units at the same positions.

Where positions hold groups (pathray.data.groups), the rows of a group travel one after the other with their position
and slot; to the tasks of a cluster only positions travel, so that each decodes whole groups, and a group comes back as
bytes, so that what the reader makes of it may be ragged.

Not `streaming_split`: it drops the last rows of a pass and its state cannot be saved; and no decoding in `collate_fn`,
whose reorder buffer is unbounded.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pathray.data.faults import Fault
from pathray.data.share import Lookup, Share, check_geometry, check_positions, micro_batches, share_rows
from pathray.data.stream import DecodeSettings, decode, stream_batches
from pathray.data.units import Batch, UnitReader, join_groups

FAULTS, GROUP = "faults_json", "group_pickle"
MICROS_PER_TASK, TASKS_PER_WINDOW = 4, 1000
WINDOW_ROWS = 1 << 17  # of one rank: some megabytes, and minutes of training


def rows(lookup: Lookup, share: Share, *, chunk: int = 2048) -> Iterator[dict[str, Any]]:
    """This rank's plan rows in micro-batches, in order, each batch's positions asserted."""
    windows = _windows(lookup, share, chunk)
    micros = (batch for window in windows for batch in micro_batches(window, share.micro))
    return check_positions(micros, share.start, share.global_batch, share.rank, share.world, share.micro)


def _windows(lookup: Lookup, share: Share, chunk: int) -> Iterator[dict[str, Any]]:
    """The rows in windows, each a short Ray Data execution taken whole, the next one while this one is used up.

    Not one execution for the whole run: its scheduling loop, which runs in this process as long as it lasts, costs the
    decoding threads more than half of their speed (docs/decisions.md). The first window is small and looked up here:
    training begins while Ray Data starts.
    """
    first, *parts = _parts(share, chunk, lookup.order.units_per_position)
    with _background_thread() as executor:
        coming = [executor.submit(_window, lookup, part, chunk) for part in parts[:1]]
        yield from share_rows(lookup, first, chunk)
        for number in range(len(parts)):
            window = coming.pop().result()
            coming += [executor.submit(_window, lookup, part, chunk) for part in parts[number + 1 : number + 2]]
            yield window


def _parts(share: Share, chunk: int, rows: float) -> list[Share]:
    """`share` cut at step boundaries: `chunk` of the rank's rows first, then WINDOW_ROWS at a time; a position holds
    `rows` of them on average."""
    own, parts = round(share.global_batch // share.world * rows), list[Share]()
    first, size = share.start, chunk
    while first < share.stop:
        stop = min(share.stop, first + max(1, size // own) * share.global_batch)
        parts.append(replace(share, start=first, stop=stop))
        first, size = stop, WINDOW_ROWS
    return parts


@contextmanager
def _background_thread() -> Iterator[ThreadPoolExecutor]:
    """One thread; a stream that is closed does not wait for what the thread is at."""
    executor = ThreadPoolExecutor(1, "pathray-rows")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _window(lookup: Lookup, share: Share, chunk: int) -> dict[str, Any]:
    # The import takes a second, which the first step need not wait for.
    from ray_jobs.train.rank_source import fetch_rows

    return fetch_rows(lookup, share, chunk)


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
        return stream_batches(rows(lookup, share, chunk=chunk), reader, lookup, settings)
    assert decode_on == "cluster", decode_on
    return check_positions(
        _decode_in_tasks(lookup, reader, share, tasks, chunk),
        share.start,
        share.global_batch,
        share.rank,
        share.world,
        share.micro,
    )


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


class _DecodeGroups(_DecodeTask):
    """Decodes the groups at some positions in a Ray Data task, each into one value of bytes."""

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        groups = micro_batches(self.lookup(rows["position"]), 1)
        packed = [pickle.dumps(decode(self.reader, group, self.lookup), pickle.HIGHEST_PROTOCOL) for group in groups]
        return {"position": rows["position"], GROUP: np.array(packed, dtype=object)}


def _unpack(batch: Batch) -> Batch:
    """A micro-batch as tasks send it → as `decode` gives it."""
    if GROUP in batch:
        return join_groups([pickle.loads(group) for group in batch[GROUP]])
    batch["faults"] = [Fault(**f) for text in batch.pop(FAULTS) for f in json.loads(text)]
    batch["corrupt"] = len({f.position for f in batch["faults"] if not f.benign})
    return batch


def _decode_in_tasks(lookup: Lookup, reader: UnitReader, share: Share, tasks: int, chunk: int) -> Iterator[Batch]:
    """Reads and decodes in tasks of a few micro-batches; the tasks of a window are planned at once, then the next's."""
    from ray_jobs.train.rank_source import RankRows, read

    steps = max(1, MICROS_PER_TASK * share.micro * share.world // share.global_batch)
    window = steps * TASKS_PER_WINDOW * share.global_batch
    decode_task = (_DecodeGroups if lookup.grouped else _DecodeTask)(lookup, reader).__call__
    for first in range(share.start, share.stop, window):
        part = replace(share, start=first, stop=min(first + window, share.stop))
        count = -(-(part.stop - part.start) // (steps * share.global_batch))
        source = RankRows(None if lookup.grouped else lookup, part, chunk, steps)
        dataset = read(source, blocks=count, cpus=1)
        dataset = dataset.map_batches(
            decode_task, batch_size=share.micro, batch_format="numpy", num_cpus=1, concurrency=min(tasks, count)
        )
        for batch in dataset.iterator().iter_batches(batch_size=share.micro, prefetch_batches=2, batch_format="numpy"):
            yield _unpack(batch)
