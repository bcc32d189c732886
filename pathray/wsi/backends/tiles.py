"""An LRU cache of decoded tiles with a limit in bytes. Not a cache of files or handles.

Many readers and threads may share a cache. The lock covers dictionary operations only, never reading or decoding.
After a fork the child starts with an empty cache and a new lock.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

import numpy.typing as npt

Key = tuple[int, int, int]  # reader's token, level, tile index
Tile = npt.NDArray[Any]


class _State:
    """The state of one process."""

    def __init__(self) -> None:
        self.pid, self.lock, self.nbytes = os.getpid(), threading.Lock(), 0
        self.tiles: OrderedDict[Key, Tile] = OrderedDict()


class TileCache:
    """An LRU cache of at most `capacity` bytes of tiles. Cached tiles must not be modified."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._state = _State()

    @property
    def nbytes(self) -> int:
        return self._process_state().nbytes

    def get(self, key: Key) -> Tile | None:
        state = self._process_state()
        with state.lock:
            tile = state.tiles.get(key)
            if tile is not None:
                state.tiles.move_to_end(key)
        return tile

    def put(self, key: Key, tile: Tile) -> None:
        """Cache `tile`, replacing an older one, unless it is larger than half the cache."""
        size = tile.nbytes
        if size > self.capacity // 2:
            return
        state, dropped = self._process_state(), list[Tile]()
        with state.lock:
            old = state.tiles.pop(key, None)
            if old is not None:
                dropped.append(old)
            state.tiles[key] = tile
            state.nbytes += size - (0 if old is None else old.nbytes)
            while state.nbytes > self.capacity:
                last = state.tiles.popitem(last=False)[1]
                dropped.append(last)
                state.nbytes -= last.nbytes
        # `dropped` is freed here, outside the lock

    def forget(self, token: int) -> None:
        """Drop every tile of one reader."""
        state = self._process_state()
        with state.lock:
            for key in [k for k in state.tiles if k[0] == token]:
                state.nbytes -= state.tiles.pop(key).nbytes

    def _process_state(self) -> _State:
        if self._state.pid != os.getpid():
            self._state = _State()
        return self._state

    def __reduce__(self) -> tuple[Any, ...]:
        return TileCache, (self.capacity,)
