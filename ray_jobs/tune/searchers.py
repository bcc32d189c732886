"""A Ray Tune Searcher over snapshots: what to try next is the newest snapshot that nobody has judged.

The one file that touches Tune's developer API (`Searcher`). Tune copies and pickles searchers, so this one holds a name
only; what it asks stands in `WATCHES` of this process. Not here: the decision (pathray.evaluation.backlog).
"""

from __future__ import annotations

from typing import Any, Protocol

from ray.tune.search import Searcher

FINISHED = Searcher.FINISHED


class Watched(Protocol):
    """What suggests evaluations, and is told how they ended."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial, None while there is nothing, FINISHED when there will be nothing more."""
        ...

    def completed(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None: ...


WATCHES: dict[str, Watched] = {}


class SnapshotSearcher(Searcher):
    """Asks the `Watched` that stands under `name` in WATCHES."""

    def __init__(self, name: str) -> None:
        super().__init__(metric=None, mode=None)
        self.name = name

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        watch = WATCHES.get(self.name)
        return FINISHED if watch is None else watch.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (watch := WATCHES.get(self.name)) is not None:
            watch.completed(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: results on storage are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: results on storage are the state."""
