"""An ordered parallel map over Ray tasks, with bounded work in flight. For many small units such as slides.

Results come in the order of the items whatever finishes first, so what is written from them does not depend on timing.
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

from pathray.data.watchdog import ended_after
from ray_jobs.shell.runtime import is_ray_running

log = logging.getLogger(__name__)


TIMEOUT_S = 3600.0
DEATHS, LOSSES = 2, 4  # of the process, or of the machine, under an item until it is given up


class ItemLost(Exception):
    """An item ended the process that worked on it, or took too long, whenever it was tried; the message says which."""


@dataclass(frozen=True)
class RayMap:
    """`RayMap(lost)(function, items)`: like the builtin map, in Ray tasks of `chunk` items.

    At most `window` tasks are submitted and not yet taken (default: twice the cluster's CPUs, at least 4). What
    `function` raises is raised here as it is. A process that dies (killed for memory, a crash inside a decoder, a lost
    node), or is longer than `timeout_s` at one item, which ends it even inside a library that holds the interpreter,
    is made up for: its items are tried again one by one, and one that does the same alone becomes
    `lost(item, ItemLost)`. Without a running Ray the items are worked on in this process, one after the other.
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
            return _taken(future)
        except _Died as died:
            log.warning("a worker process died on %d item(s); retrying them one by one: %s", len(part), died)
            weight = died.weight
        return [self._alone(task, shared, item, weight) for item in part]

    def _alone(self, task: Any, shared: Any, item: Any, given_up: float) -> Any:
        """The result of an item in a task of its own. `given_up`: 1 when it was tried often enough."""
        while True:
            began = time.monotonic()
            try:
                return _taken(task.remote(shared, [item], self.timeout_s))[0]
            except _Died as died:
                log.warning("a worker process died on one item: %s", died)
                given_up += died.weight
                if given_up < 1:
                    continue
                slow = self.timeout_s and time.monotonic() - began > self.timeout_s
                said = f"took longer than {self.timeout_s:g} s" if slow else died.said
                return self.lost(item, ItemLost(said))


class _Died(Exception):
    """A process ended under its items; `weight`: what share that is of what one item may do."""

    def __init__(self, error: Exception, weight: float) -> None:
        super().__init__(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.weight = weight
        lost = "was on nodes that were lost"
        self.said = lost if weight < 1 / DEATHS else "crashed the worker process (usually in a decoder)"


def _taken(future: Any) -> list[Any]:
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
        with ended_after(timeout_s):
            results.append(function(item))
    return results
