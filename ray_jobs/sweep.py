"""Hyperparameter search over any training job: from a space in YAML to a leaderboard and the best config as YAML.

    python -m ray_jobs.sweep --config sweep_lr output=outputs/sweep \\
        'args=[--config, smoke, data.slide_manifest_csv=slides.csv]'
    python -m ray_jobs.sweep restore=outputs/sweep

A trial is a run of the job in `output`/trials, with its own checkpoints and metrics. On SIGTERM and Ctrl-C all runs
save a checkpoint and end, and `restore=` resumes each of them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ijepath.config import CONFIGS_DIR
from pathray.config.load import Loaded
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.shell.runtime import ray_session, worker_environment
from ray_jobs.tune.config import (
    CONFIG,
    SAVE_EVERY,
    Sweep,
    SweepConfig,
    TrainingJob,
    check_output,
    check_sweep,
    restore_config,
)

if TYPE_CHECKING:
    from pathray.store.storage import Storage
    from ray_jobs.tune.board import Status

log = logging.getLogger(__name__)
TRIAL_CPUS = 1.01  # Ray CPUs of a trial, in addition to its run's
LATEST_EVERY, KEEP_ALL = "checkpoint.latest_every", 1_000_000


def main(loaded: Loaded[SweepConfig]) -> Outputs | None:
    config = loaded.config
    config = restore_config(config) if config.restore else replace(config, output=check_output(config))
    sweep = check_sweep(config)
    _check_job(sweep)
    if loaded.dry_run:
        return tell((sweep.trials, "trials"))
    with ray_session(config.runtime, cpus=config.max_concurrent * (_cpus(sweep) + TRIAL_CPUS)):
        return run(sweep)


def _check_job(sweep: Sweep) -> None:
    """Dry-run the job with the first value of every key, so that a UserError is raised before Ray starts."""
    trial = sweep.job.load(sweep.first, *sweep.job.words_for(f"{sweep.config.output}/trials/none"))
    for note in trial.notes:
        log.warning("args: %s", note)
    log.info("trying a dry run of %s with the first values of the space", sweep.job.name)
    sweep.job.module.main(replace(trial, dry_run=True))


def _cpus(sweep: Sweep) -> float:
    from ray_jobs.train.training_jobs import cpus_of

    return cpus_of(sweep.base) if sweep.job.has("scaling.workers") else 2.0


def run(sweep: Sweep) -> Outputs:
    """Run all trials on the running Ray until they end or the sweep is stopped."""
    from pathray.run.layout import STOP
    from pathray.store.storage import Storage
    from ray_jobs.train.driver import stop_on_signals
    from ray_jobs.tune.board import BEST, BOARD, PICTURE, read_statuses, write_board
    from ray_jobs.tune.mlflow import Parent
    from ray_jobs.tune.tuner import tuner_of

    store = Storage.of(str(sweep.config.output))
    store.remove(STOP)
    store.write_bytes(CONFIG, _sweep_yaml(sweep).encode())
    parent = Parent(store, sweep.base.logging) if sweep.job.has("logging.mlflow_parent") else None
    settings = _settings(sweep, store, parent.words() if parent else [])
    with stop_on_signals(store):
        tuner_of(sweep, settings).fit()
    stopped, statuses = store.exists(STOP), read_statuses(store)
    best = write_board(store, sweep)
    code = 0 if stopped else _verdict(statuses)
    if parent is not None:
        facts = {"job": sweep.job.name, "trials": len(statuses)}
        parent.close(best, sweep.config.objective, facts, "KILLED" if stopped else "FAILED" if code else "FINISHED")
    if stopped:
        log.info("the sweep was stopped; resume it with: python -m ray_jobs.sweep restore=%s", store.url)
    paths: dict[str, object] = {"sweep": store.url, "leaderboard": store.join(BOARD), "picture": store.join(PICTURE)}
    if best is not None:
        log.info("best: trial %s, %s %s", best.trial, sweep.config.objective.metric, best.best and best.best[1])
        paths["best"] = store.join(BEST)
    return Outputs(paths, exit_code=code)


def _settings(sweep: Sweep, store: Storage, words: list[str]) -> Any:
    from ray_jobs.tune.trial import TrialSettings

    config, build = sweep.config, getattr(sweep.job.module, "build_shared_inputs", None)
    if build is not None:
        shared = sweep.job.load(sweep.first, *sweep.job.words_for(store.join("shared"))).config
        words = [*words, *build(shared, list(sweep.space))]
    snapshots = config.pbt.perturbation_images or 0 if config.scheduler == "pbt" else 0
    if snapshots:
        words = [*words, *_snapshot_words(sweep.job, snapshots)]
    return TrialSettings(
        store.url, sweep.job, tuple(sweep.space), config.objective, tuple(words), os.getcwd(), snapshots,
        worker_environment(),
    )  # fmt: skip


def _snapshot_words(job: TrainingJob, images: int) -> list[str]:
    """Config words that save a checkpoint every `images` images and keep all of them, since a trial may branch from an
    old one. A job without snapshots by images keeps its ordinary checkpoints."""
    keys: dict[str, int] = {"tuning.execution.keep_last_n_snapshots": KEEP_ALL}
    own = {SAVE_EVERY: images} if job.has(SAVE_EVERY) else {LATEST_EVERY: images, "checkpoint.keep_last_n": KEEP_ALL}
    return [f"{key}={value}" for key, value in (keys | own).items() if job.has(key)]


def _sweep_yaml(sweep: Sweep) -> str:
    """The sweep's config as YAML, without credentials."""
    from omegaconf import OmegaConf

    from pathray.urls import public, public_text

    parts = (arg.partition("=") for arg in sweep.job.args)
    args = [f"{key}={public(value)}" if sign else key for key, sign, value in parts]
    config = replace(sweep.config, args=args, restore=None)
    return public_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _verdict(statuses: list[Status]) -> int:
    """The exit code: 1 if all trials failed. Raises the first UserError if every trial had one."""
    errors = [status.error for status in statuses]
    if not errors or not all(errors):
        return 0
    first = next(error for error in errors if error)
    if all(error and error["where"] is not None for error in errors):
        raise UserError(first["text"], **first["where"])
    unexpected = next(error for error in errors if error and error["where"] is None)
    log.error("every trial failed; the first error:\n%s", unexpected["trace"] or unexpected["message"])
    return 1


if __name__ == "__main__":
    job(main, SweepConfig, CONFIGS_DIR)
