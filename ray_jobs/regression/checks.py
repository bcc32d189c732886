"""What is asked of a regression's run before it trains: do its rows suffice, is it finished, does it work at all.

Not here: which folder and checkpoint it is (ray_jobs.regression.runs).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.run.layout import RESULTS as METRICS
from pathray.store.records import check_seal
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.tracking_feed import tell_tracking
from ray_jobs.train.training_jobs import LONGER

if TYPE_CHECKING:
    from pathray.store.committed import Committed
    from pathray.store.storage import Storage
    from ray_jobs.regression.runs import Run
    from regression.config import RunConfig

log = logging.getLogger(__name__)
MIN_VALIDATION = 2  # rows: fewer have no correlation


def check_rows(run: Run, *, in_epochs: bool) -> None:
    """UserError where the rows cannot do what is asked for; a warning where they do it in another way. `in_epochs`:
    whether the budget was given in passes."""
    from pathray.train.budget import passes_note
    from regression.plan import rows_of

    train, val = run.config.train, int(rows_of(run.plan, "val").size)
    if val < MIN_VALIDATION:
        check_unvalidated(run.config, val)
    budget = {"epochs": train.epochs} if in_epochs else None
    images, batch = int(train.images or 0), int(train.global_batch or 0)
    if note := passes_note(budget, images=images, global_batch=batch, epoch_images=run.plan.rows):
        log.warning("%s (train.global_batch, train.batch_size x train.grad_accum_steps x scaling.workers)", note)


def check_unvalidated(config: RunConfig, val: int) -> None:
    """UserError where early stopping is asked for and too few rows validate; else a word on what that means."""
    if config.eval.patience is not None:
        message = "early stopping needs validation, and too few rows validate: a correlation needs two"
        found = f"{config.eval.patience}, with {val} val rows in {config.data.split}"
        expected = f"{MIN_VALIDATION} or more val rows in data.split, or eval.patience=null"
        raise UserError(message, key="eval.patience", found=found, expected=expected)
    level = logging.WARNING if val else logging.INFO  # none at all is meant: folds of two groups have none
    log.log(level, "%s has %d val rows: nothing validates, the last state is exported", config.data.split, val)


def tell_rehearsal(runs: Sequence[Run]) -> None:
    """Two batches of training and of validation of the first run in this process, what they say, and all runs' rows."""
    from regression.plan import rows_of
    from regression.rehearsal import rehearse

    run = runs[0]
    found = rehearse(run.config, run.plan)
    losses = ", ".join(f"{loss:.4g}" for loss in found.losses)
    log.info("two batches: loss %s; %.1f images/s in this process", losses, found.images_per_s)
    if found.validation:
        log.info(
            "of two validation batches: %s %.3f", run.config.eval.primary, found.validation[run.config.eval.primary]
        )
    parts = {"training": run.plan.rows} | {part: int(rows_of(run.plan, part).size) for part in ("val", "test")}
    tell((len(runs), "runs"), *((count, f"{part} rows") for part, count in parts.items()))


def is_repeated(fresh: Run, newest: Committed) -> bool:
    """Whether the run `fresh` would only repeat, batch and evaluation included, the one that `newest` is of."""
    from pathray.config.load import fingerprint

    def evaluation_settings(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key.startswith("eval.")}

    before = newest.meta.get("placement", {}).get("values", {})
    same = evaluation_settings(before) == evaluation_settings(fingerprint(fresh.config, placement=True)["values"])
    return bool(same and fresh.identity["hash"] == newest.meta["identity"]["hash"])


def is_finished(run: Run) -> bool:
    """Whether the run has its results, and this config asks for no more training than they are of; says so."""
    from pathray.store.storage import Storage
    from pathray.train.supervised import NOTES

    store = Storage.of(run.folder)
    if not store.exists(METRICS):
        return False
    newest, patience, advice = run.newest, run.config.eval.patience, LONGER.format("train.epochs, train.images")
    if newest is None:
        log.info("this run is finished: %s", run.folder)
        return True
    seen = int(newest.meta["images_seen"])
    if seen < int(run.config.train.images or 0):
        stopped = _results(store).get("end") == "early_stop"
        since = newest.meta.get("notes", {}).get(NOTES, {}).get("since_best", patience)
        if not stopped or patience is None or since < patience:
            return False
        advice = "early stopping ended it; a larger eval.patience, or null, trains on"
    log.info("this run is finished (%s images): %s; %s", f"{seen:,}", run.folder, advice)
    tell_tracking(run.config, run.folder, newest)
    return True


def keep_results(run: Run) -> None:
    """Move the results of a shorter budget aside: without metrics.json the run is unfinished."""
    from pathray.store.storage import Storage

    store = Storage.of(run.folder)
    if run.newest is not None and store.exists(METRICS):
        name = f"metrics_{run.newest.meta['images_seen']}.json"
        store.write_bytes(name, store.read_bytes(METRICS))
        store.remove(METRICS)
        log.info("training on; the results so far are in %s", store.join(name))


def _results(store: Storage) -> dict[str, Any]:
    try:
        found = dict(json.loads(store.read_bytes(METRICS)))
        check_seal(found, store.join(METRICS), METRICS)
        return found
    except (ValueError, TypeError) as e:
        expected = "the file moved away: the run's own command writes it again"
        raise UserError(f"not the metrics of a run: {e!r}", file=store.join(METRICS), expected=expected) from e
