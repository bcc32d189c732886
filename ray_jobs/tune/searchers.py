"""A Ray Tune Searcher over snapshots: it suggests the newest snapshot that has not been evaluated.

This is the only file that uses Tune's developer API (`Searcher`). Tune copies and pickles searchers, so this one holds
only a name; the object behind it is in this process's `WATCHES`. Not here: the choice (pathray.evaluation.backlog).
"""

from __future__ import annotations

from typing import Any, Protocol

from ray.tune.search import Searcher

FINISHED = Searcher.FINISHED


class Watched(Protocol):
    """Suggests evaluations and receives their results."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None if there is none at the moment, FINISHED if there will be no more."""
        ...

    def record_trial(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None: ...


WATCHES: dict[str, Watched] = {}


class SnapshotSearcher(Searcher):
    """Delegates to the `Watched` named `name` in WATCHES."""

    def __init__(self, name: str) -> None:
        super().__init__(metric=None, mode=None)
        self.name = name

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        watch = WATCHES.get(self.name)
        return FINISHED if watch is None else watch.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (watch := WATCHES.get(self.name)) is not None:
            watch.record_trial(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the results on storage are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the results on storage are the state."""
