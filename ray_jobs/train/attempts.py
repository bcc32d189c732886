"""Attempts of one training through Ray Train: what Ray is told of it, and when another fit begins after a failure."""

from __future__ import annotations

import logging
import os
from typing import Any

from pathray.config.sections import ScalingConfig
from pathray.errors import UserError
from pathray.run.layout import CHECKPOINTS, RAY
from pathray.run.outcome import RETRY
from pathray.store.outages import through_outages
from ray_jobs.train.driver import run_in_thread
from ray_jobs.train.group_start import GroupStart
from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)
NEXT_FIT = "the next fit"


def fit_while_it_advances(job: TrainJob, store: Any) -> dict[str, Any]:
    """Ray counts the failures of a whole fit; days of training on machines that come and go have more of them than a
    broken one has. So once they are used up, another fit begins, if there is a newer checkpoint than at the last, or
    more is known of units whose decoding ends processes. Out of memory is no failure to be counted: as long as a group
    notes a smaller micro-batch for the next one, that one is begun. Workers that cannot be initialised: GroupStart."""
    from ray.train import TrainingFailedError

    from pathray.run.memory import describe

    reached, fits, smaller, start = (0, 0), 1, dict[str, Any](), GroupStart(job, store)
    while True:
        try:
            value = _fit(job, store, fits)
            if value.get("end") != RETRY:
                return value
            job.changes, fits = job.changes | value["changes"], fits + 1
        except (TrainingFailedError, UserError) as e:
            if start.can_retry(e):
                fits += 1
                continue
            if isinstance(e, UserError):
                raise
            newest, crashes, noted = _newest_of(job, store), _crashes_in(store), _requested_changes(job, store)
            advances = newest > reached[0] or crashes > reached[1]
            if noted in ({}, smaller) and not (job.scaling.max_failures and advances):
                if (hung := _hang_error(job, store)) is not None:
                    raise hung from e
                raise
            failure = " ".join(str(e).split())[:400]
            if noted not in ({}, smaller):
                got = f"the next attempt takes {describe(noted)}"
            elif newest > reached[0]:
                got = f"training has come to {newest} images"
            else:
                got = "more crashing units were identified"
            log.warning("scaling.max_failures is used up, but %s: %s", got, failure)
            reached, fits, smaller = (newest, crashes), fits + 1, noted or smaller


def _fit(job: TrainJob, store: Any, number: int) -> dict[str, Any]:
    trainer = ray_trainer(job, store, number)
    return dict(run_in_thread(lambda: trainer.fit().return_value, store, job.total_images, job.name) or {})


def _crashes_in(store: Any) -> int:
    """Deaths of decoding processes that the run has notes of."""
    from pathray.data import crashes

    try:
        return len(through_outages(lambda: store.list(crashes.FOLDER), NEXT_FIT))
    except OSError as e:
        log.warning("the notes of crashes could not be looked at: %s", e)
        return 0


def _requested_changes(job: TrainJob, store: Any) -> dict[str, Any]:
    """What attempts of this job that ran out of memory asked to change; nothing where that cannot be seen."""
    from pathray.run.memory import read_requested_changes

    try:
        return through_outages(lambda: read_requested_changes(store, job.fit_id), NEXT_FIT)
    except OSError as e:
        log.warning("the note of a smaller micro-batch could not be looked at: %s", e)
        return {}


def _hang_error(job: TrainJob, store: Any) -> UserError | None:
    """The error of a job whose attempts ended because a step hung; None for any other, and where that is not known."""
    from pathray.run.hangs import hang_error

    try:
        return through_outages(lambda: hang_error(store, job.fit_id), NEXT_FIT)
    except OSError as e:
        log.warning("the notes of steps that hung could not be looked at: %s", e)
        return None


def _newest_of(job: TrainJob, store: Any) -> int:
    """Images seen by the newest checkpoint that this job has written; 0 before the first, or where none can be seen."""
    from pathray.store.committed import list_committed

    try:
        found = through_outages(lambda: list_committed(store.join(CHECKPOINTS)), NEXT_FIT)
    except OSError as e:
        log.warning("the checkpoints could not be looked at: %s", e)
        return 0
    return max((int(c.meta["images_seen"]) for c in found if c.meta.get("fit_id") == job.fit_id), default=0)


def ray_trainer(job: TrainJob, store: Any, number: int = 1) -> Any:
    from ray import cloudpickle
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from ray_jobs.train.backends import backend_config, scaling_config
    from ray_jobs.train.resources import worker_resources
    from ray_jobs.train.worker import train_worker

    scaling, accelerator = job.scaling, str(job.accelerator)
    resources = worker_resources(
        accelerator, scaling.cpus_per_worker, scaling.gpus_per_worker, scaling.resources_per_worker
    )
    # a process more to start, which nobody asks without a cadence for it
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1" if scaling.preemption_check_steps > 0 else "0"
    run_config = RunConfig(
        name=f"fit-{job.fit_id}" + (f"-{number}" if number > 1 else ""),
        storage_path=store.path(RAY),
        storage_filesystem=store.pyarrow_fs(),
        failure_config=FailureConfig(  # type: ignore[call-arg]  # as below
            max_failures=0 if job.starting else scaling.max_failures,
            controller_failure_limit=0 if job.starting and not scaling.autoscaling else -1,  # of starting the group
        ),
        worker_runtime_env=worker_runtime_env(scaling),  # type: ignore[call-arg]  # types are those of another RunConfig
    )
    return DataParallelTrainer(
        train_worker,
        train_loop_config={"job": cloudpickle.dumps(job)},  # the controller need not import the science, nor torch
        backend_config=backend_config(accelerator, scaling.collective_timeout_s, scaling.workers, alone=job.alone),
        scaling_config=scaling_config(
            scaling.workers,
            resources,
            accelerator,
            tpu_type=scaling.tpu_type,
            tpu_topology=scaling.tpu_topology,
        ),
        run_config=run_config,
    )


def worker_runtime_env(scaling: ScalingConfig) -> dict[str, Any] | None:
    """The workers' own environment where Ray's processes do not have it already: Ray starts them anew for it."""
    from ray_jobs.shell.runtime import worker_environment
    from ray_jobs.train.in_process import threads_of

    wanted = {"OMP_NUM_THREADS": str(threads_of(scaling)), "RAY_USAGE_STATS_ENABLED": "0"}
    return None if worker_environment() == wanted else {"env_vars": wanted}
