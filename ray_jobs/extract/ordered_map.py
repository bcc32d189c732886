"""An ordered parallel map over Ray tasks with bounded work in flight, for many small items such as slides.

Results come in item order, so what is written from them does not depend on timing.
Not here: training streams (ray_jobs.train.rank_stream).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pathray.data.watchdog import exit_after
from ray_jobs.shell.runtime import is_ray_running

log = logging.getLogger(__name__)


TIMEOUT_S = 3600.0
DEATHS, LOSSES = 2, 4  # an item is given up after this many deaths of its process, or losses of its node


class ItemLost(Exception):
    """An item crashed its process or took too long in every attempt; the message says which."""


@dataclass(frozen=True)
class RayMap:
    """`RayMap(lost)(function, items)` works like the builtin map, in Ray tasks of `chunk` items.

    At most `window` tasks are in flight (default: twice the cluster's CPUs, at least 4). Exceptions of `function` are
    raised here unchanged. If a process dies (out of memory, a crash inside a decoder, a lost node) or is ended because
    one item took longer than `timeout_s`, its items are retried one by one; an item that fails again becomes
    `lost(item, ItemLost)`. Without a running Ray, items are processed here one after the other.
    """

    lost: Callable[[Any, Exception], Any]
    chunk: int = 1
    window: int | None = None
    num_cpus: float = 1.0
    timeout_s: float = TIMEOUT_S

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        if not is_ray_running():
            yield from map(function, items)
            return
        import ray

        window = self.window or max(4, 2 * int(ray.cluster_resources().get("CPU", 1) / self.num_cpus))
        task = ray.remote(num_cpus=self.num_cpus, max_retries=0)(_run)
        shared = ray.put(function)
        source = iter(items)
        pending: deque[tuple[list[Any], Any]] = deque()
        try:
            while True:
                while len(pending) < window and (part := list(islice(source, self.chunk))):
                    pending.append((part, task.remote(shared, part, self.timeout_s)))
                if not pending:
                    return
                part, future = pending.popleft()
                yield from self._results(task, shared, part, future)
        finally:
            for _, future in pending:
                ray.cancel(future)

    def _results(self, task: Any, shared: Any, part: list[Any], future: Any) -> list[Any]:
        try:
            return _get_results(future)
        except _Died as died:
            log.warning("a worker process died on %d item(s); retrying them one by one: %s", len(part), died)
            weight = died.weight
        return [self._retry_one(task, shared, item, weight) for item in part]

    def _retry_one(self, task: Any, shared: Any, item: Any, given_up: float) -> Any:
        """The result of one item in its own task. `given_up` counts its attempts; at 1 the item is lost."""
        while True:
            began = time.monotonic()
            try:
                return _get_results(task.remote(shared, [item], self.timeout_s))[0]
            except _Died as died:
                log.warning("a worker process died on one item: %s", died)
                given_up += died.weight
                if given_up < 1:
                    continue
                slow = self.timeout_s and time.monotonic() - began > self.timeout_s
                said = f"took longer than {self.timeout_s:g} s" if slow else died.said
                return self.lost(item, ItemLost(said))


class _Died(Exception):
    """A process ended while working on its items; `weight` is the share of an item's allowed attempts."""

    def __init__(self, error: Exception, weight: float) -> None:
        super().__init__(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.weight = weight
        lost = "was on nodes that were lost"
        self.said = lost if weight < 1 / DEATHS else "crashed the worker process (usually in a decoder)"


def _get_results(future: Any) -> list[Any]:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    try:
        return list(ray.get(future))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except NodeDiedError as error:
        raise _Died(error, 1 / LOSSES) from error
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise _Died(error, 1 / DEATHS) from error


def _run(function: Callable[[Any], Any], items: list[Any], timeout_s: float) -> list[Any]:
    results = []
    for item in items:
        with exit_after(timeout_s):
            results.append(function(item))
    return results
