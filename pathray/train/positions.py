"""Digests of the positions that each shard has really trained on, so that no two can train on the same unseen.

A shard is a rank's device; on XLA, each device of the mesh, by the rows that were placed on it. The digest of a set of
positions is Σ mix(position) mod 2^64, mix being the finalizer of SplitMix64 (doi:10.1145/2660193.2660195). So it does
not depend on the order of rows, and those of all shards add up to that of the whole window.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pathray.device import Device
from pathray.train.recipe import TrainingStopped

PENDING = 1024  # micro-batches whose positions are kept on the device at most
CHUNK = 1 << 20


def digest(positions: npt.ArrayLike) -> int:
    """The digest of these positions.

    >>> (digest([3, 5]) - digest([5]) - digest([3])) % 2**64
    0
    """
    z = np.asarray(positions).astype(np.uint64).ravel() + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))


class Positions:
    """Of this process, since position `start` or the last `read`. All ranks call `check` and `read` together."""

    def __init__(self, device: Device, start: int) -> None:
        self.device, self.start = device, start
        self.sums = [0] * device.local_devices
        self.pending: list[Tensor] = []

    def add(self, placed: Tensor) -> None:
        """Count a micro-batch by its positions `[micro]` as they were placed on the device. Waits for nothing, but for
        a copy of a few bytes after every PENDING micro-batches."""
        self.pending.append(placed)
        if not self.device.runs_ahead or len(self.pending) >= PENDING:
            self._count()

    def check(self, seen: int) -> list[int]:
        """The digest of every shard, ranks and in them devices in order.

        TrainingStopped, on all ranks, when two shards have the same positions, or when they have not had those from
        `start` up to `seen` together.
        """
        self._count()
        shards = [digest for rank in self.device.gather_objects(self.sums) for digest in rank]
        where = f"positions {self.start} to {seen}"
        kind = "device" if self.device.local_devices > 1 else "rank"
        for a, b in combinations(range(len(shards)), 2):
            if shards[a] == shards[b]:
                raise TrainingStopped(
                    f"{kind}s {a} and {b} have trained on the same rows of {where}",
                    found=f"{kind} {a}: {shards[a]:016x}, {kind} {b}: {shards[b]:016x}",
                    expected=f"other rows on every {kind}: check ranks and placement of this set-up",
                )
        total, whole = sum(shards) % 2**64, _digest_between(self.start, seen)
        if total != whole:
            message = f"the {kind}s together have not trained on each of {where} once"
            raise TrainingStopped(message, found=f"{total:016x}", expected=f"{whole:016x}")
        return shards

    def read(self, seen: int) -> dict[str, str]:
        """The entries of a row of metrics, checked: ``positions``, the first one and the end, and the digest of each
        shard as ``positions/<shard>``. Starts anew."""
        shards = self.check(seen)
        window = f"{self.start}:{seen}"
        self.start, self.sums = seen, [0] * len(self.sums)
        return {"positions": window} | {f"positions/{i}": f"{value:016x}" for i, value in enumerate(shards)}

    def _count(self) -> None:
        for shards in self.device.local_shards(self.pending):
            for i, rows in enumerate(shards):
                self.sums[i] = (self.sums[i] + digest(rows)) % 2**64
        self.pending = []


def _digest_between(start: int, stop: int) -> int:
    parts = (digest(np.arange(first, min(first + CHUNK, stop))) for first in range(start, stop, CHUNK))
    return sum(parts) % 2**64
