"""Runs one training job of any science through Ray Train: the driver's side (`fit`) and the worker's (`train_worker`).

The worker loads the newest committed checkpoint of the run folder, opens its own stream from there and consumes the
loop's ticks; nothing of Ray's checkpointing is used, so a restarted worker group, a resubmitted job and a notebook all
resume in the same way. The science comes in as a module-level `assemble` function; nothing here knows which it is.

The driver turns SIGTERM and Ctrl-C into a STOP object that all ranks poll together (train functions do not run on the
main thread, so they get no signals), feeds MLflow, and turns what happened into one `Outcome` or one error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pathray.config.sections import ScalingConfig
from pathray.errors import UserError, user_error_in
from pathray.fingerprint import flatten
from pathray.run.layout import CHECKPOINTS, EVALUATIONS, METRICS, PROGRESS, RAY, STOP
from pathray.run.progress import TrainingProgress
from ray_jobs.shell.cli import Terminated

if TYPE_CHECKING:
    from pathray.evaluation.settings import TuningConfig

log = logging.getLogger(__name__)
WAITING_S = 15.0  # between words of a driver that waits for the last checkpoint
MLFLOW_EVERY_S = 30.0  # its first connection is seconds of a core, which the workers' start needs


@dataclass
class Tracking:
    """Whether and where the run's metrics go beside metrics.jsonl. `uri` None: SQLite beside a local run folder. `tags`
    are the MLflow run's: `mlflow.parentRunId` makes it another's child."""

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "pathray"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainJob:
    """Everything a worker needs; pickled to it. `assemble(config, plan, world) -> pathray.train.assembly.Assembly`.

    The driver shows progress towards `total_images` (0: not known). `decode_tasks`: how many tasks of the cluster
    decode for each worker, 0 where the workers do it themselves.
    """

    assemble: Callable[..., Any]
    config: Any
    plan_path: str
    run_dir: str
    scaling: ScalingConfig
    resume: str = "auto"
    resume_changes: list[str] = field(default_factory=list)  # identity keys that may differ from the checkpoint's
    tracking: Tracking = field(default_factory=Tracking)
    start_metrics: dict[str, float] = field(default_factory=dict)
    total_images: int = 0
    decode_tasks: int = 0
    identity: dict[str, Any] = field(default_factory=dict)  # beside the config's: what MLflow is told, too
    accelerator: str | None = None  # what `begin` found; None: fit begins
    tuning: TuningConfig | None = None  # evaluations beside the training
    identity_hash: str | None = None  # of the run, which evaluations belong to
    tag: str | None = None  # of its checkpoints
    name: str = "train"  # of its lines of progress
    fit_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])


@dataclass
class Outcome:
    """How a fit ended: `end` is ``budget``, ``early_stopped`` (by an evaluator), ``early_stop`` (by validation) or
    ``stopped`` (interrupted); the last metrics; where checkpoint and artifact lie."""

    end: str
    images_seen: int
    metrics: dict[str, float]
    checkpoint: str | None
    artifact: str | None
    unreadable: int = 0


def begin(run_dir: str, scaling: ScalingConfig, decode_tasks: int = 0) -> str:
    """The accelerator to train on, once the running Ray can hold the workers and they see the run's folder.

    For jobs that prepare long: before they do. Removes an older STOP; one that comes from now on holds. UserError for
    what the cluster lacks.
    """
    import ray

    from pathray.store.storage import Storage
    from ray_jobs.shell.shared_output import check_shared
    from ray_jobs.train.backends import check_resources, resolve_accelerator, worker_resources

    accelerator = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    resources = worker_resources(
        accelerator, scaling.cpus_per_worker, scaling.gpus_per_worker, scaling.resources_per_worker
    )
    check_resources(scaling.workers, resources, ray.cluster_resources(), scaling.autoscaling, decode_tasks)
    store = Storage.of(run_dir)
    store.remove(STOP)
    if store.local:
        store.remove(PROGRESS)  # the end of an earlier start is not this one's
        check_shared(store.url, resources)
    return accelerator


def fit(job: TrainJob) -> Outcome:
    """Train to the budget, to a STOP, or to an error. Ray must be running.

    Raises UserError for what the user can mend (also when a worker found it), and what Ray raised otherwise.
    """
    from pathray.run import quarantine
    from pathray.store.storage import Storage

    store = Storage.of(job.run_dir)
    job.run_dir, job.plan_path = store.url, Storage.of(job.plan_path).url  # workers run in another folder
    if job.accelerator is None:
        job.accelerator = begin(job.run_dir, job.scaling, job.decode_tasks)
    try:
        with mlflow_fed(job, store), _evaluators(job, store) as evaluators:
            value = _fit_while_it_advances(job, store)
            if evaluators is not None and not value.get("fatal"):
                evaluators.drain()
    except BaseException:
        _merge_anyway(store)
        raise
    if fatal := value.get("fatal"):
        _merge_anyway(store)
        raise UserError(fatal["message"], **fatal["where"])
    return Outcome(unreadable=quarantine.merge(store), **value)


def _merge_anyway(store: Any) -> None:
    """The quarantine report of a run that failed: what is wrong with the report must not hide what ended the run."""
    from pathray.run import quarantine

    try:
        quarantine.merge(store)
    except OSError as e:
        log.warning("the quarantine report could not be written: %s", e)


def request_stop(run_dir: str, reason: str = "asked to") -> None:
    """Ask a running job to checkpoint and end: what SIGTERM to the driver and an early stop do."""
    from pathray.store.storage import Storage

    Storage.of(run_dir).write_bytes(STOP, json.dumps({"time": time.time(), "reason": reason}).encode())


def _evaluators(job: TrainJob, store: Any) -> Any:
    """Evaluations beside the training, if the job wants any: a context."""
    if job.tuning is None or not job.tuning.enable:
        return nullcontext()
    import ray

    from ray_jobs.tune.evaluation_runner import Evaluators, request_of

    scaling = job.scaling
    gpus = scaling.workers * scaling.gpus_per_worker if job.accelerator == "cuda" else 0.0
    request = request_of(job.tuning.execution, str(job.accelerator), ray.cluster_resources(), gpus, scaling.workers)
    return Evaluators(store.url, job.tuning, request, identity=job.identity_hash, tag=job.tag)


def _fit_while_it_advances(job: TrainJob, store: Any) -> dict[str, Any]:
    """Ray counts the failures of a whole fit; days of training on machines that come and go have more of them than a
    broken one has. So once they are used up, another fit begins, if there is a newer checkpoint than at the last, or
    more is known of units whose decoding ends processes."""
    from ray.train import TrainingFailedError

    reached, fits = (0, 0), 1
    while True:
        try:
            return _fit_in_thread(_ray_trainer(job, store, fits), store, job.total_images, job.name)
        except TrainingFailedError as e:
            newest, crashes = _newest_of(job, store), _crashes_in(store)
            if not job.scaling.max_failures or (newest <= reached[0] and crashes <= reached[1]):
                raise
            failure = " ".join(str(e).split())[:400]
            got = (
                f"training has come to {newest} images"
                if newest > reached[0]
                else "more crashing units were identified"
            )
            log.warning("scaling.max_failures is used up, but %s: %s", got, failure)
            reached, fits = (newest, crashes), fits + 1


def _crashes_in(store: Any) -> int:
    """Deaths of decoding processes that the run has notes of."""
    from pathray.data import crashes

    try:
        return len(store.list(crashes.FOLDER))
    except OSError as e:
        log.warning("the notes of crashes could not be looked at: %s", e)
        return 0


def _newest_of(job: TrainJob, store: Any) -> int:
    """Images seen by the newest checkpoint that this job has written; 0 before the first, or where none can be seen."""
    from pathray.store.committed import list_committed

    try:
        found = list_committed(store.join(CHECKPOINTS))
    except OSError as e:
        log.warning("the checkpoints could not be looked at: %s", e)
        return 0
    return max((int(c.meta["images_seen"]) for c in found if c.meta.get("fit_id") == job.fit_id), default=0)


def _fit_in_thread(trainer: Any, store: Any, total_images: int, name: str = "train") -> dict[str, Any]:
    """`trainer.fit()` beside the main thread, which stays free for signals: the first asks to stop, the second ends.
    Meanwhile it shows how far the training is."""
    result: dict[str, Any] = {}
    progress = TrainingProgress(store, total_images, name)

    def run() -> None:
        try:
            result["value"] = trainer.fit().return_value
        except BaseException as e:  # carried to the main thread, which raises it
            result["error"] = e

    thread = threading.Thread(target=run, name="pathray-fit", daemon=True)
    with stop_on_signals(store):
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                progress.look()
        finally:
            progress.close()
    if "error" in result:
        raise user_error_in(result["error"]) or result["error"]
    return dict(result["value"] or {})


@contextmanager
def stop_on_signals(store: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False
    ended = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        asked = True
        log.warning(
            "%s: waiting for the step in progress and a checkpoint, usually less than a minute; once more to end at "
            "once, from the checkpoint before",
            signal.Signals(signum).name,
        )
        threading.Thread(target=request_stop, args=(store.url,), daemon=True).start()
        threading.Thread(target=_say_that_it_waits, args=(ended,), daemon=True).start()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        ended.set()
        for s, handler in before.items():
            signal.signal(s, handler)


def _say_that_it_waits(ended: threading.Event) -> None:
    since = time.monotonic()
    while not ended.wait(WAITING_S):
        log.warning("still waiting for the checkpoint, for %.0f s", time.monotonic() - since)


@contextmanager
def mlflow_fed(job: TrainJob, store: Any) -> Iterator[None]:
    """Feed MLflow from metrics.jsonl while the job runs; MLflow's trouble is logged, never the run's."""
    if not job.tracking.mlflow:
        yield
        return
    from pathray.run.tracking import MlflowFeeder, default_uri

    uri = job.tracking.uri
    if uri is None:
        if not store.local:
            log.warning("MLflow: no tracking_uri is given and the run is remote; metrics.jsonl has it all")
            yield
            return
        uri = default_uri(store)
    with MlflowFeeder(
        store.join(METRICS),
        uri=uri,
        experiment=job.tracking.experiment,
        run_name=store.url,
        params=mlflow_params(job),
        tags=job.tracking.tags,
        beside={EVALUATIONS: "tune/tune_images_seen"} if job.tuning is not None else {},
        every_s=MLFLOW_EVERY_S,
    ):
        yield


def mlflow_params(job: TrainJob) -> dict[str, Any]:
    """The run's whole config by dotted key, and its identity."""
    return {key: value for key, (value, _) in flatten(job.config).items()} | job.identity


def _ray_trainer(job: TrainJob, store: Any, number: int = 1) -> Any:
    from ray import cloudpickle
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from ray_jobs.train.backends import backend_config, scaling_config, worker_resources
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
        failure_config=FailureConfig(max_failures=scaling.max_failures),
        worker_runtime_env=_worker_runtime_env(scaling),
    )
    return DataParallelTrainer(
        train_worker,
        train_loop_config={"job": cloudpickle.dumps(job)},  # the controller need not import the science, nor torch
        backend_config=backend_config(accelerator, scaling.collective_timeout_s, scaling.workers),
        scaling_config=scaling_config(
            scaling.workers,
            resources,
            accelerator,
            tpu_type=scaling.tpu_type,
            tpu_topology=scaling.tpu_topology,
        ),
        run_config=run_config,
    )


def _worker_runtime_env(scaling: ScalingConfig) -> dict[str, Any] | None:
    """The workers' own environment where Ray's processes do not have it already: Ray starts them anew for it."""
    from ray_jobs.shell.runtime import worker_environment

    threads = scaling.threads_per_worker or max(1, int(scaling.cpus_per_worker))
    wanted = {"OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0"}
    return None if worker_environment() == wanted else {"env_vars": wanted}
