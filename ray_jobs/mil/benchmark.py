"""Compares the finished trials of a benchmark of models on the same slides. Not here: the trials (ray_jobs.sweep)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pathray.search.objective import Objective

if TYPE_CHECKING:
    from pathray.search.leaderboard import Entry

log = logging.getLogger(__name__)
COMPARISON = "comparison"
OBJECTIVE = Objective("val/loss", "min")


def compare_trials(output: str, resamples: int) -> dict[str, object]:
    """Write `comparison`.json with its figure and page, best validation loss first; returns the files. A trial that
    has failed is left out and named; of fewer than two there is nothing to compare."""
    from mil.comparison.comparing import compare
    from mil.comparison.experiments import read_experiments
    from mil.comparison.output import write_comparison
    from mil.judging.predictions import read_predictions
    from pathray.search.leaderboard import FINISHED
    from pathray.store.storage import Storage
    from ray_jobs.tune.board import RUNS, entries_of

    store = Storage.of(output)
    entries = entries_of(store, OBJECTIVE)
    good = sorted((e for e in entries if e.status == FINISHED and e.best is not None), key=_validation_loss)
    for lost in (e for e in entries if e not in good):
        log.warning("%s is left out of the comparison: %s %s", _name(lost, entries), lost.status, lost.error)
    if len(good) < 2:
        log.warning("nothing to compare: %d trials have finished", len(good))
        return {}
    sources = {_name(e, entries): [store.join(RUNS, e.trial)] for e in good}
    compared = compare(read_experiments(sources, read_predictions), resamples=resamples)
    for note in compared.notes:
        log.warning("%s", note)
    losses = {_name(e, entries): _validation_loss(e) for e in good}
    return write_comparison(
        compared, store.join(f"{COMPARISON}.json"), "Models on the same splits", {"validation_loss": losses}
    )


def _validation_loss(entry: Entry) -> float:
    assert entry.best is not None
    return entry.best[1]


def _name(entry: Entry, entries: list[Entry]) -> str:
    """The values that differ among the trials, such as `abmil, training.lr=0.001`."""
    said: list[str] = []
    for key, value in entry.values.items():
        if len({str(other.values.get(key)) for other in entries}) > 1 or key == "model":
            said.append(str(value) if key in ("model", "encoder") else f"{key}={_short(value)}")
    return ", ".join(said)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
