"""Maps items over a pool of Ray actors that are costly to start (an encoder on a GPU); results come as they finish.

Each item is its own task, so a long one does not delay others. For cheap functions use ray_jobs.extract.ordered_map.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.shell.runtime import is_ray_running

ATTEMPTS = 2  # for an item that kills its process


@dataclass(frozen=True)
class ActorMap:
    """`ActorMap(actors=4)(build, items)` yields (number of the item, result).

    `build()` runs once in each actor and returns the function for the items. An exception of the function is raised
    here and ends the map. If a process dies (out of memory, a crash inside a decoder, a lost node), its item is retried
    in a new actor, then returned last as (number, None); the other items continue. Without a running Ray, items are
    processed here.
    """

    actors: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __call__(
        self, build: Callable[[], Callable[[Any], Any]], items: Sequence[Any]
    ) -> Iterator[tuple[int, Any | None]]:
        if not items:
            return
        if not is_ray_running():
            yield from enumerate(map(build(), items))
            return
        left = set(range(len(items)))
        rows = self._dataset(build, items).iter_rows()
        try:
            for row in rows:
                result = pickle.loads(row["result"])
                if isinstance(result, _Raised):
                    raise result.error
                left.discard(row["number"])
                yield row["number"], result
        finally:
            getattr(rows, "close", lambda: None)()
        yield from ((number, None) for number in sorted(left))

    def _dataset(self, build: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Any:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # our report names lost items
        rows = [{"number": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        dataset.context.enable_progress_bars = False
        dataset.context.max_errored_blocks = -1
        dataset.context.execution_no_progress_timeout_s = -1  # an item may take hours
        pool = ray.data.ActorPoolStrategy(size=min(self.actors, len(rows)), max_tasks_in_flight_per_actor=1)
        return dataset.map(
            _Actor,  # type: ignore[arg-type]
            fn_constructor_args=(build,),
            compute=pool,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus or None,
            max_task_retries=ATTEMPTS - 1,
        )


@dataclass
class _Raised:
    error: Exception


class _Actor:
    """The class that Ray Data instantiates in each actor."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self.build = build
        self.function: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.function is None:
                self.function = self.build()
            result = self.function(pickle.loads(row["item"]))
        except Exception as e:  # raised by the map; Ray Data would drop the item
            result = _Raised(_portable(e))
        return {"number": row["number"], "result": pickle.dumps(result)}


def _portable(error: Exception) -> Exception:
    """The error with its trace as a note, if it can be pickled; otherwise a RuntimeError with the trace."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in an actor:\n{trace}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error
