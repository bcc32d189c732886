"""Trains a job of any science to its end, and turns what happened into one `Outcome` or one error.

Through Ray Train, whose workers load the newest committed checkpoint of the run folder and open their own streams from
there; nothing of Ray's checkpointing is used, so a restarted worker group, a resubmitted job and a notebook all resume
in the same way. With `scaling.workers=0` in this process, without Ray. The science comes in as a module-level
`assemble` function; nothing here knows which it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pathray.config.sections import ScalingConfig
from pathray.errors import UserError
from pathray.run.layout import PROGRESS, STOP
from pathray.run.outcome import Outcome
from ray_jobs.train.job import TrainJob
from ray_jobs.train.tracking_feed import feed_tracking


def begin(run_dir: str, scaling: ScalingConfig, decode_tasks: int = 0) -> str:
    """The accelerator to train on, once the running Ray can hold the workers and they see the run's folder.

    For jobs that prepare long: before they do. Removes an older STOP; one that comes from now on holds. UserError for
    what the cluster lacks.
    """
    from pathray.store.storage import Storage
    from ray_jobs.train.resources import resolve_accelerator, worker_resources

    store = Storage.of(run_dir)
    accelerator = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    resources = worker_resources(
        accelerator, scaling.cpus_per_worker, scaling.gpus_per_worker, scaling.resources_per_worker
    )
    if scaling.workers:
        _check_cluster(scaling, resources, decode_tasks)
    store.remove(STOP)
    if store.local:
        store.remove(PROGRESS)  # the end of an earlier start is not this one's
    if store.local and scaling.workers:
        from ray_jobs.shell.shared_output import check_shared

        check_shared(store.url, resources)
    return accelerator


def _check_cluster(scaling: ScalingConfig, resources: dict[str, float], decode_tasks: int) -> None:
    import ray

    from ray_jobs.train.resources import check_resources

    check_resources(scaling.workers, resources, ray.cluster_resources(), scaling.autoscaling, decode_tasks)


def fit(job: TrainJob) -> Outcome:
    """Train to the budget, to a STOP, or to an error. Ray must be running, unless `scaling.workers` is 0.

    Raises UserError for what the user can mend (also when a worker found it), and what Ray raised otherwise.
    """
    from pathray.run import quarantine
    from pathray.run.fence import hold
    from pathray.store.storage import Storage

    store = Storage.of(job.run_dir)
    job.run_dir, job.plan_path = store.url, Storage.of(job.plan_path).url  # workers run in another folder
    with hold(job.run_dir) as fence:
        job.owner = fence.token
        if job.accelerator is None:
            job.accelerator = begin(job.run_dir, job.scaling, job.decode_tasks)
        try:
            with feed_tracking(job, store):
                return _fit_in_process(job, store) if job.scaling.workers == 0 else _fit_through_ray(job, store)
        except BaseException:
            if fence.is_held():
                quarantine.merge_after_failure(store)
            raise


def _fit_in_process(job: TrainJob, store: Any) -> Outcome:
    from ray_jobs.train.in_process import fit_in_process

    return fit_in_process(job, store)


def _fit_through_ray(job: TrainJob, store: Any) -> Outcome:
    from ray_jobs.train.attempts import fit_while_it_advances

    with _evaluators(job, store) as evaluators:
        value = fit_while_it_advances(job, store)
        fatal = value.get("fatal")
        if evaluators is not None and not fatal:
            evaluators.drain()
    if fatal:
        raise UserError(fatal["message"], **fatal["where"])
    return Outcome(**value)


def _evaluators(job: TrainJob, store: Any) -> Any:
    """Evaluations during the training, if the job wants any: a context."""
    if job.tuning is None or not job.tuning.enable:
        return nullcontext()
    import ray

    from ray_jobs.tune.evaluation_resources import request_of
    from ray_jobs.tune.evaluation_runner import Evaluators

    scaling = job.scaling
    gpus = scaling.workers * scaling.gpus_per_worker if job.accelerator == "cuda" else 0.0
    request = request_of(job.tuning.execution, str(job.accelerator), ray.cluster_resources(), gpus, scaling.workers)
    return Evaluators(store.url, job.tuning, request, identity=job.identity_hash, tag=job.tag)
