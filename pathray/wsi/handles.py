"""A cache of open slides per process: a bounded number of handles that share one bounded cache of decoded tiles.

An evicted handle is closed when its last read ends, never during a read. Not here: masks, thread pools.
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
from pathray.wsi.backends.source import retry_request
from pathray.wsi.backends.tiles import TileCache
from pathray.wsi.reader import SlideReader, open_with

log = logging.getLogger(__name__)


def _sizes(state: str) -> list[str]:
    """The sizes in a `file_state` string, without the modification times."""
    return [part.partition(":")[0] for part in state.split(" ")]


class _Open:
    def __init__(self) -> None:
        self.pid, self.lock = os.getpid(), threading.Lock()
        self.readers: OrderedDict[str, SlideReader] = OrderedDict()
        self.states: dict[str, str] = {}  # state of each local file when it was first opened here


class HandleCache:
    """Keeps the `max_open` most recently used slides open, with at most `cache_bytes` of tiles in total.

    Safe in threads; empty after a fork or unpickling.

    Other backends' libraries have their own caches: each slide gets `cache_bytes` / `max_open`.
    """

    def __init__(self, max_open: int = 32, cache_bytes: int = 256 << 20, backend: str = "auto") -> None:
        assert max_open > 0, max_open
        self.max_open, self.cache_bytes, self.backend = max_open, cache_bytes, backend
        self.tiles = TileCache(cache_bytes)
        self._open = _Open()

    def get(self, path: str, indexed: str = "") -> SlideReader:
        """The reader of `path`; opens it if necessary.

        Raises what `open_slide` raises, and UnreadableUnit (``changed``) if the file was replaced: a local file since
        it was first opened here, or any file whose state differs from the index's `indexed`
        (pathray.store.storage.file_state). For local files only the size is compared with the index, because a copy
        on another machine has another modification time.

        Slides are opened outside the lock, so a stalled file system delays only the callers of that slide. If two
        threads open one slide at once, both succeed and one handle is kept.
        """
        here = self._process_handles()
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
            return  # asking for the state would cost one request per opening
        now = retry_request(path, lambda: file_state(path)) if is_url(path) else file_state(path)
        same = now == indexed if is_url(path) else _sizes(now) == _sizes(indexed)
        if indexed and not same:
            detail = f"the file changed since it was indexed: was {indexed}, now {now}"
            raise UnreadableUnit("changed", public(path), detail)
        if is_url(path):
            return
        with here.lock:
            if indexed and now != indexed and path not in here.states:
                log.warning(
                    "%s: the modification time differs from the index; check that it is a copy of the same slide", path
                )
            first = here.states.setdefault(path, now)
        if now != first:
            raise UnreadableUnit("changed", path, f"the file was replaced during the run: was {first}, now {now}")

    def __len__(self) -> int:
        return len(self._process_handles().readers)

    def close(self) -> None:
        """Release every handle and tile."""
        self._open, self.tiles = _Open(), TileCache(self.cache_bytes)

    def _process_handles(self) -> _Open:
        if self._open.pid != os.getpid():
            self._open = _Open()
        return self._open

    def __reduce__(self) -> tuple[Any, ...]:
        return HandleCache, (self.max_open, self.cache_bytes, self.backend)
