"""An ordered parallel map over Ray tasks, with bounded work in flight. For many small units such as slides.

Results come in the order of the items whatever finishes first, so what is written from them does not depend on timing.
Not here: training streams (ray_jobs.streams).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayMap:
    """`RayMap(lost)(function, items)`: like the builtin map, in Ray tasks of `chunk` items.

    At most `window` tasks are submitted and not yet taken (default: twice the cluster's CPUs, at least 4). What
    `function` raises is raised here as it is. A task whose process dies (killed for memory, a crash inside a decoder, a
    lost node) is tried again item by item; an item that kills its process then too becomes `lost(item, error)`.
    """

    lost: Callable[[Any, Exception], Any]
    chunk: int = 1
    window: int | None = None
    num_cpus: float = 1.0

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        import ray

        window = self.window or max(4, 2 * int(ray.cluster_resources().get("CPU", 1) / self.num_cpus))
        task = ray.remote(num_cpus=self.num_cpus, max_retries=1)(_run)
        shared = ray.put(function)
        source = iter(items)
        pending: deque[tuple[list[Any], Any]] = deque()
        try:
            while True:
                while len(pending) < window and (part := list(islice(source, self.chunk))):
                    pending.append((part, task.remote(shared, part)))
                if not pending:
                    return
                part, future = pending.popleft()
                yield from self._results(task, shared, part, future)
        finally:
            for _, future in pending:
                ray.cancel(future)

    def _results(self, task: Any, shared: Any, part: list[Any], future: Any) -> list[Any]:
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        try:
            return list(ray.get(future))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            if len(part) == 1:
                log.warning("a process died on one item: %s", error)
                return [self.lost(part[0], error)]
        return [r for item in part for r in self._results(task, shared, [item], task.remote(shared, [item]))]


def _run(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [function(item) for item in items]
