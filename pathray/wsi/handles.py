"""Open slides, kept per process: a bounded number of handles over one bounded store of decoded tiles.

Not for masks, and not a pool of threads. A handle that falls out is closed when its last read ends, never under it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from typing import Any

from pathray.errors import UnreadableUnit
from pathray.store.storage import file_state
from pathray.urls import is_url, public
from pathray.wsi.backends.tiles import TileCache
from pathray.wsi.reader import SlideReader, open_with

log = logging.getLogger(__name__)


def _sizes(state: str) -> list[str]:
    """The sizes in what `file_state` says of a file or of a folder's files, without their times."""
    return [part.partition(":")[0] for part in state.split(" ")]


class _Open:
    def __init__(self) -> None:
        self.pid, self.lock = os.getpid(), threading.Lock()
        self.readers: OrderedDict[str, SlideReader] = OrderedDict()
        self.states: dict[str, str] = {}  # of local files when they were first opened here


class HandleCache:
    """The `max_open` slides used last, `cache_bytes` of tiles in all. Safe in threads; empty after a fork or a pickle.

    Libraries behind other backends keep caches of their own: their slides share `cache_bytes` out among `max_open`.
    """

    def __init__(self, max_open: int = 32, cache_bytes: int = 256 << 20, backend: str = "auto") -> None:
        assert max_open > 0, max_open
        self.max_open, self.cache_bytes, self.backend = max_open, cache_bytes, backend
        self.tiles = TileCache(cache_bytes)
        self._open = _Open()

    def get(self, path: str, indexed: str = "") -> SlideReader:
        """The reader of `path`, opened when it is not open. Raises what `open_slide` raises, and UnreadableUnit
        (``changed``) for a file that was replaced: a local one that is not the one that was opened first, or one of
        another state than the index has in `indexed` (pathray.store.storage.file_state; of local files only the size,
        since a copy on another machine has another time).

        Opening happens outside the lock, so that a stalled file system holds up only who asks for that slide; two
        threads that open one slide at once both succeed and one handle stays.
        """
        here = self._here()
        with here.lock:
            reader = here.readers.get(path)
            if reader is not None:
                here.readers.move_to_end(path)
                return reader
        self._check_unchanged(here, path, indexed)
        opened = open_with(path, self.tiles, backend=self.backend, library_bytes=self.cache_bytes // self.max_open)
        dropped = []
        with here.lock:
            reader = here.readers.setdefault(path, opened)
            while len(here.readers) > self.max_open:
                dropped.append(here.readers.popitem(last=False)[1])
        return reader

    def _check_unchanged(self, here: _Open, path: str, indexed: str) -> None:
        if is_url(path) and not indexed:
            return  # a state costs a request for each opening
        now = file_state(path)
        same = now == indexed if is_url(path) else _sizes(now) == _sizes(indexed)
        if indexed and not same:
            detail = f"the file differs from the one that was indexed: {indexed}, now {now}"
            raise UnreadableUnit("changed", public(path), detail)
        if is_url(path):
            return
        with here.lock:
            if indexed and now != indexed and path not in here.states:
                log.warning(
                    "%s: its modification time differs from the index; is it a copy, or a different slide?", path
                )
            first = here.states.setdefault(path, now)
        if now != first:
            raise UnreadableUnit("changed", path, f"the file was replaced while it was in use: {first}, now {now}")

    def __len__(self) -> int:
        return len(self._here().readers)

    def close(self) -> None:
        """Let go of every handle and tile."""
        self._open, self.tiles = _Open(), TileCache(self.cache_bytes)

    def _here(self) -> _Open:
        if self._open.pid != os.getpid():
            self._open = _Open()
        return self._open

    def __reduce__(self) -> tuple[Any, ...]:
        return HandleCache, (self.max_open, self.cache_bytes, self.backend)
