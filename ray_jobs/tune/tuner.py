"""Runs a sweep on Ray Tune: the space, the searcher, the scheduler, and the callback that writes the leaderboard.

Apart from the trial, this is the only file of the sweep that uses Tune's classes. Everything that Tune pickles is plain
settings; a restored sweep finds the rest on storage.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator

from pathray.errors import explain, user_error_in
from pathray.search.leaderboard import FAILED, FINISHED, STOPPED, UNFINISHED
from pathray.search.objective import IMAGES, Objective
from pathray.search.space import Dimension
from pathray.store.outages import Looks
from pathray.store.storage import Storage
from ray_jobs.tune.board import RUNS, Status, write_board, write_statuses
from ray_jobs.tune.config import Sweep
from ray_jobs.tune.sweep_run import history_of
from ray_jobs.tune.trial import END, PARKED, SweepTrial, TrialSettings, plain, stop_token

log = logging.getLogger(__name__)
FOLDER = "tune"
REFRESH_S, LOOK_S = 30.0, 0.5
STOP_OF_SWEEP = "a stop of the sweep"
BUILD_CPUS = 1.0  # for building a run's inputs before training, which Ray takes from the trial's share
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics.jsonl and MLflow are used instead
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tuner_of(sweep: Sweep, settings: TrialSettings) -> tune.Tuner:
    """The tuner of a sweep: restored from what Tune saved, or a new one."""
    os.environ.update(ENVIRONMENT)
    _quiet()
    store, config = Storage.of(settings.root), sweep.config
    random.seed(config.seed)  # PBT's mutations use the global generators
    np.random.seed(config.seed)
    trainable = tune.with_resources(tune.with_parameters(SweepTrial, settings=settings), _resources(config))
    path, filesystem = store.path(FOLDER), store.pyarrow_fs()
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        return tune.Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=filesystem)
    objective = config.objective
    return tune.Tuner(
        trainable,
        param_space={key: domain_of(dimension) for key, dimension in sweep.space.items()},
        tune_config=tune.TuneConfig(
            metric=objective.metric,
            mode=objective.mode,
            num_samples=config.samples or 1,
            search_alg=_searcher(config),
            scheduler=_scheduler(sweep, settings),
            max_concurrent_trials=config.max_concurrent if config.search == "optuna" else None,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=FOLDER, storage_path=store.path(), storage_filesystem=filesystem, verbose=0,
            callbacks=[Watch(settings.root, sweep)],
        ),
    )  # fmt: skip


def _quiet() -> None:
    """Log only errors of Tune, without the one about unfinished trials, since a stopped sweep can be restored."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").addFilter(lambda record: "did not complete" not in record.getMessage())
    warnings.filterwarnings("ignore", message="Consider boosting PBT")


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _resources(config: Any) -> tune.PlacementGroupFactory:
    """The resources of a trial, which only waits for its run; the run's workers have their own. It runs on the driver's
    node, where the job's files are, and takes a share of it so that at most `max_concurrent` trials fit. Unlike Tune's
    own limit, this ignores paused trials and lasts until a stopped trial has really ended."""
    here = f"node:{ray.util.get_node_ip_address()}"
    share = round(1 / (config.max_concurrent + 0.5), 4)
    return tune.PlacementGroupFactory([{"CPU": 0.01, here: share}, {"CPU": BUILD_CPUS}])


def domain_of(dimension: Dimension) -> Any:
    """A dimension as a Tune search domain."""
    values = dimension.values
    if dimension.kind in ("choice", "grid"):
        return tune.choice(list(values)) if dimension.kind == "choice" else tune.grid_search(list(values))
    return getattr(tune, dimension.kind)(*values)


def _searcher(config: Any) -> Any:
    if config.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=config.objective.metric, mode=config.objective.mode, seed=config.seed)
    return BasicVariantGenerator(random_state=config.seed)


def _scheduler(sweep: Sweep, settings: TrialSettings) -> Any:
    config = sweep.config
    if config.scheduler == "asha":
        return Halving(settings.root, config.objective, config.asha)
    if config.scheduler == "pbt":
        mutations = {key: list(d.values) if d.kind == "choice" else domain_of(d) for key, d in sweep.space.items()}
        return PopulationBasedTraining(
            time_attr=IMAGES,
            perturbation_interval=cast(int, config.pbt.perturbation_images),  # the config was checked
            quantile_fraction=config.pbt.quantile,
            hyperparam_mutations=mutations,
            custom_explore_fn=_InsideSpace(sweep.space),
            log_config=False,
        )
    return FIFOScheduler()


@dataclass(frozen=True)
class _InsideSpace:
    """Moves mutated values back into the space."""

    space: Mapping[str, Dimension]

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, **{key: dimension.nearest(config[key]) for key, dimension in self.space.items()}}


class Halving(ASHAScheduler):  # type: ignore[misc]
    """ASHA over images seen. After a restore it recovers earlier trials' results, which Tune does not save."""

    def __init__(self, root: str, objective: Objective, settings: Any) -> None:
        super().__init__(
            time_attr=IMAGES,
            max_t=settings.max_images or 10**15,
            grace_period=settings.grace_images,
            reduction_factor=settings.reduction_factor,
        )
        self.root, self.objective = root, objective

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if not trial.has_reported_at_least_once:
            return
        told, bracket = trial.last_result.get(IMAGES, -1), self._trial_info[trial.trial_id]
        for images, value in history_of(Storage.of(self.root).at(RUNS, trial.trial_id), self.objective):
            if images <= told:
                bracket.on_result(trial, images, -self.objective.cost(value))


class Watch(tune.Callback):  # type: ignore[misc]
    """Writes the trials' statuses and the leaderboard; ends the sweep on request, once all runs have stopped."""

    def __init__(self, root: str, sweep: Sweep) -> None:
        self.root, self.sweep = root, sweep
        self.looked = self.refreshed = 0.0
        self.ended: set[str] = set()
        self.looks = Looks(STOP_OF_SWEEP)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a sweep that an earlier version began, too: it had no `looks`."""
        self.__dict__.update({"looks": Looks(STOP_OF_SWEEP), **state})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return
        self.looked = now
        if now - self.refreshed > REFRESH_S:
            self._refresh(trials)
        store = Storage.of(self.root).without_retries()  # Tune's loop waits for no storage
        token = self.looks.look(lambda: stop_token(store), "")
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if token and all(_last(trial).get(PARKED) == token for trial in running):
            assert threading.current_thread() is threading.main_thread(), "the signal must be raised on the main thread"
            signal.raise_signal(signal.SIGUSR1)  # makes Tune save its state and end

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._log_trial(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._log_trial(trials, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._refresh(trials)

    def _log_trial(self, trials: list[Any], trial: Any) -> None:
        status = self._status(trial)
        objective, last = self.sweep.config.objective, _last(trial)
        figures = f", {objective.metric} {last.get(objective.metric)} at {last[IMAGES]:,} images" if last else ""
        log.info("trial %s: %s%s", trial.trial_id, status.status if status.status != UNFINISHED else STOPPED, figures)
        self.refreshed = -REFRESH_S  # refresh at the next check, when the trial has its final status

    def _refresh(self, trials: list[Any]) -> None:
        self.refreshed = time.monotonic()
        store = Storage.of(self.root)
        try:
            write_statuses(store, [self._status(trial) for trial in trials])
            write_board(store, self.sweep)
        except Exception as e:  # trials continue; the final write raises
            log.warning("could not write the leaderboard; retrying: %s", explain(e))

    def _status(self, trial: Any) -> Status:
        last, most = _last(trial), self.sweep.config.asha.max_images
        values = {key: plain(trial.config[key]) for key in self.sweep.space if key in trial.config}
        if trial.status == "ERROR":
            return Status(trial.trial_id, FAILED, values, _error(trial))
        reached = self.sweep.config.scheduler == "asha" and most is not None and last.get(IMAGES, 0) >= most
        if END in last or (reached and last.get("done")):
            return Status(trial.trial_id, FINISHED, values)
        stopped = trial.status == "TERMINATED" and last.get("done")
        return Status(trial.trial_id, STOPPED if stopped else UNFINISHED, values)


def _last(trial: Any) -> dict[str, Any]:
    return dict(trial.last_result) if trial.has_reported_at_least_once else {}


def _error(trial: Any) -> dict[str, Any]:
    error = trial.get_pickled_error() or trial.get_error()
    users = user_error_in(error)
    if users is not None:
        where = {key: None if value is None else str(value) for key, value in users.where.items()}
        return {"message": str(users), "text": users.message, "where": where, "trace": ""}
    cause = getattr(error, "cause", None) or error
    message = str(cause).strip().rpartition("\n")[2]
    return {"message": f"{type(cause).__name__}: {message}", "where": None, "trace": _trace(error)}


def _trace(error: Any) -> str:
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else json.dumps(error)
